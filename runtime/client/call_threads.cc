#include "runtime/client/call_threads.h"

#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace annulus {

CallThreads::~CallThreads() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

absl::Status CallThreads::Run(Job job) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (calls_ >= calls_max_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("async_calls_max: ", calls_max_,
                       "; as many in use, this call needs 1 more; try again later"));
    }
    if (calls_ >= static_cast<int>(threads_.size())) {
      try {
        threads_.emplace_back([this] { Loop(); });
      } catch (const std::system_error& error) {
        return absl::ResourceExhaustedError(
            absl::StrCat("the system has no thread for an asynchronous call: ", error.what()));
      }
    }
    ++calls_;
    jobs_.push_back(std::move(job));
  }
  changed_.notify_one();
  return absl::OkStatus();
}

void CallThreads::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    job = nullptr;  // what it holds goes before the call counts as over
    lock.lock();
    --calls_;
  }
}

}  // namespace annulus
