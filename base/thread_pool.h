// A fixed set of threads for loops over independent items, of many callers at once.
//
// A caller takes part in its loop, so that a pool of one thread is the caller alone. Loops that are
// urgent go first: their callers begin at once, and a thread turns to them between two items of
// another loop, or where a body calls GiveWay. Other loops share the threads evenly among tenants,
// and those of a tenant among their owners, item by item, and no more threads than the pool has run
// them; a caller that finds all of them busy waits while its items are run. However many urgent
// loops there are, the others keep a fifth of the time. A loop inside a body runs on that body's
// thread alone. Thread-safe. A warm pool allocates nothing.
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
  // How a loop takes turns with others.
  struct Turn {
    bool urgent = false;
    // Those that are not urgent share evenly among tenants, a tenant's among its owners.
    uint64_t owner = 0;
    uint64_t tenant = 0;
  };

  // `threads` in all, the caller included; 0 for one per core that the process may use, where each
  // but the caller's stays on a core of its own.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(i) once for each i in [0, count), handing out items in ascending order, and returns
  // when all are done. What the bodies wrote is visible to the caller. Bodies must not throw.
  void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body, Turn turn);
  void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body) {
    ParallelFor(count, body, Turn{});
  }

  // For bodies of loops that are not urgent, in the midst of a long item: lets urgent loops go
  // first, perhaps on this thread, and now and then whatever else waits for this core. Costs a look
  // at the clock otherwise.
  void GiveWay() {
    if (urgent_.load(std::memory_order_relaxed) != 0) LetUrgentGoFirst();
    YieldCore();
  }

 private:
  struct Loop;
  struct Share;
  using Lock = std::unique_lock<std::mutex>;

  void Work();
  void RunAlone(int64_t count, absl::FunctionRef<void(int64_t)> body);
  // With the mutex held, as all that takes its lock.
  void Begin(Loop& loop);
  void End(Loop& loop);
  Loop* Next(bool urgent_only) const;
  void RunSome(Loop& loop, int core, Lock& lock);
  void RunItems(Loop& loop, int core);
  void Charge(const Loop& loop, int64_t ns);
  void PassOn();
  bool has_place() const { return running_ < threads(); }
  bool has_room() const { return running_ - away_ + urgent_running_ < threads(); }
  void LetUrgentGoFirst();
  static void YieldCore();

  static thread_local Share share_;

  int callers_core_ = -1;         // that no thread of the pool stays on; -1: none stays anywhere
  std::atomic<int> urgent_ = 0;   // loops; for those that may look without the mutex
  std::atomic<int> all_ = 0;      // loops
  std::mutex mutex_;              // of all that follows
  std::condition_variable wake_;  // idle threads of the pool: there are items, or it ends
  std::condition_variable room_;  // threads that let urgent loops go first
  std::vector<Loop*> loops_;      // that have begun and not ended
  int64_t shared_since_ns_ = 0;   // loops count what they had
  uint64_t turns_ = 0;
  int idle_ = 0;            // threads of the pool
  int running_ = 0;         // threads in loops that are not urgent
  int away_ = 0;            // those of them that let urgent loops go first
  int paused_ = 0;          // those of them that wait
  int urgent_running_ = 0;  // threads that run urgent items
  bool stop_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace annulus
