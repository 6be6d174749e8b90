// CallThreads: where asynchronous calls run. Each call has a thread for as long as it takes;
// threads are started as they are needed and kept. Thread-safe.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"

namespace annulus {

class CallThreads {
 public:
  using Job = absl::AnyInvocable<void()>;

  explicit CallThreads(int calls_max) : calls_max_(calls_max) {}
  ~CallThreads();  // waits for all jobs

  // RESOURCE_EXHAUSTED, and the job does not run, while calls_max of them do.
  absl::Status Run(Job job);

 private:
  void Loop();

  const int calls_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;  // taken by no thread yet
  int calls_ = 0;         // those and the ones that run
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace annulus
