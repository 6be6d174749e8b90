// A fixed set of threads for loops over independent items. The caller takes part, so that a pool
// of one thread is the caller alone. Thread-safe: the pool serves one loop at a time; a loop that
// finds it busy (another caller, or a nested loop) runs on its caller's thread alone, which keeps
// every caller moving and cannot deadlock.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace annulus {

class ThreadPool {
 public:
  // `threads` in all, the caller included; 0 for one per core that the process may use, where each
  // but the caller's stays on a core of its own.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(i) once for each i in [0, count), handing out items in ascending order, and returns
  // when all are done. What the bodies wrote is visible to the caller. Bodies must not throw.
  void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body);

 private:
  struct Loop;
  void Work();
  static void Run(Loop& loop, int core);

  int callers_core_ = -1;  // that no thread of the pool stays on; -1: none stays anywhere
  std::mutex busy_;        // held by the caller whose loop the pool serves
  std::mutex mutex_;
  std::condition_variable wake_;  // a new loop, or the end
  std::condition_variable idle_;  // the last helper has left the loop
  Loop* loop_ = nullptr;
  uint64_t generation_ = 0;  // counts loops, so that a helper joins each at most once
  int helping_ = 0;
  bool stop_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace annulus
