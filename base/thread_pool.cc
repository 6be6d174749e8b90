#include "base/thread_pool.h"

#include <algorithm>

namespace annulus {

struct ThreadPool::Loop {
  int64_t count;
  absl::FunctionRef<void(int64_t)> body;
  std::atomic<int64_t> next{0};
};

ThreadPool::ThreadPool(int threads) {
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int helpers = (threads > 0 ? threads : cores) - 1;
  workers_.reserve(static_cast<size_t>(helpers));
  for (int i = 0; i < helpers; ++i) workers_.emplace_back([this] { Work(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(Loop& loop) {
  for (int64_t i = loop.next.fetch_add(1, std::memory_order_relaxed); i < loop.count;
       i = loop.next.fetch_add(1, std::memory_order_relaxed)) {
    loop.body(i);
  }
}

void ThreadPool::ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body) {
  Loop loop{count, body};
  std::unique_lock<std::mutex> busy(busy_, std::defer_lock);
  if (count <= 1 || workers_.empty() || !busy.try_lock()) {
    Run(loop);
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    loop_ = &loop;
    ++generation_;
  }
  wake_.notify_all();
  Run(loop);
  // All items are handed out; the loop may go once nobody works on one of them.
  std::unique_lock<std::mutex> lock(mutex_);
  loop_ = nullptr;
  idle_.wait(lock, [this] { return helping_ == 0; });
}

void ThreadPool::Work() {
  uint64_t seen = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return stop_ || (loop_ != nullptr && generation_ != seen); });
    if (stop_) return;
    seen = generation_;
    Loop& loop = *loop_;
    ++helping_;
    lock.unlock();
    Run(loop);
    lock.lock();
    if (--helping_ == 0) idle_.notify_all();
  }
}

}  // namespace annulus
