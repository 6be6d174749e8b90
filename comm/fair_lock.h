// A mutex whose busy holder can tell that others wait for it, since std::mutex is not fair: a
// thread that polls a transport takes it again and again, and those who post would starve.
// Thread-safe.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>

namespace annulus {

class FairLock {
 public:
  void lock() {
    waiting_.fetch_add(1);
    mutex_.lock();
    waiting_.fetch_sub(1);
  }
  void unlock() { mutex_.unlock(); }
  // Returns once nobody waits; for the one who has just unlocked.
  void LetOthersIn() const {
    while (waiting_.load() > 0) std::this_thread::yield();
  }

 private:
  std::mutex mutex_;
  std::atomic<int> waiting_{0};
};

}  // namespace annulus
