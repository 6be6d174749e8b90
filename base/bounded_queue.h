// A queue between threads that refuses instead of growing. Thread-safe.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace annulus {

template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t items_max) : items_max_(items_max) {}

  // Takes the item unless fewer than `headroom` + 1 places are free or the queue is closed; then it
  // returns false and the item is untouched. Headroom keeps places for items that must get in.
  bool TryPush(T& item, size_t headroom = 0) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (closed_ || items_.size() + headroom >= items_max_) return false;
      items_.push_back(std::move(item));
    }
    ready_.notify_one();
    return true;
  }

  // The oldest item, waiting for one; nullopt once the queue is closed and empty.
  std::optional<T> Pop() {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_.wait(lock, [this] { return closed_ || !items_.empty(); });
    return Take();
  }

  // The oldest item if there is one.
  std::optional<T> TryPop() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return Take();
  }

  // Refuses what comes, ends Pop once what is queued is gone.
  void Close() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    ready_.notify_all();
  }

 private:
  std::optional<T> Take() {
    if (items_.empty()) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    return item;
  }

  const size_t items_max_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<T> items_;
  bool closed_ = false;
};

}  // namespace annulus
