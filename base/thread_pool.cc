#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>

namespace annulus {
namespace {

std::vector<int> OurCores() {
  std::vector<int> cores;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &set)) cores.push_back(core);
    }
  }
  if (cores.empty()) cores.resize(std::max(1u, std::thread::hardware_concurrency()));
  return cores;
}

// Only speed depends on it, so that a refusal may be ignored.
void StayOn(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  sched_setaffinity(0, sizeof(set), &set);
}

// Takes the calling thread to that core, if it may run there, and lets it go again.
void GoTo(int core) {
  cpu_set_t before;
  if (sched_getaffinity(0, sizeof(before), &before) != 0 || !CPU_ISSET(core, &before)) return;
  StayOn(core);
  sched_setaffinity(0, sizeof(before), &before);
}

}  // namespace

struct ThreadPool::Loop {
  int64_t count;
  absl::FunctionRef<void(int64_t)> body;
  std::atomic<int64_t> next{0};
};

ThreadPool::ThreadPool(int threads) {
  const std::vector<int> cores = OurCores();
  const size_t all = threads > 0 ? static_cast<size_t>(threads) : cores.size();
  workers_.reserve(all - 1);
  if (threads <= 0 && all > 1) callers_core_ = cores[0];
  for (size_t i = 1; i < all; ++i) {
    workers_.emplace_back([this, core = threads > 0 ? -1 : cores[i]] {
      if (core >= 0) StayOn(core);
      Work();
    });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// A caller that is on the core of one of the pool's threads keeps it from coming, or shares that
// core with it: until the system sees that, which takes it many ms on a busy machine. So it goes to
// `core`, unless that is -1, between two items.
void ThreadPool::Run(Loop& loop, int core) {
  int64_t i = loop.next.fetch_add(1, std::memory_order_relaxed);
  while (i < loop.count) {
    loop.body(i);
    i = loop.next.fetch_add(1, std::memory_order_relaxed);
    if (core >= 0 && i < loop.count && sched_getcpu() != core) GoTo(core);
  }
}

void ThreadPool::ParallelFor(int64_t count, absl::FunctionRef<void(int64_t)> body) {
  Loop loop{count, body};
  std::unique_lock<std::mutex> busy(busy_, std::defer_lock);
  if (count <= 1 || workers_.empty() || !busy.try_lock()) {
    Run(loop, -1);
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    loop_ = &loop;
    ++generation_;
  }
  wake_.notify_all();
  Run(loop, callers_core_);
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
    Run(loop, -1);
    lock.lock();
    if (--helping_ == 0) idle_.notify_all();
  }
}

}  // namespace annulus
