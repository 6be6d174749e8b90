// A thread that polls a messenger from construction to destruction, so that exchanges move where
// there is no service around (benchmark ranks, tests). The messenger has its handlers set before.
#pragma once

#include <atomic>
#include <thread>

#include "comm/messenger.h"

namespace annulus {

class ProgressThread {
 public:
  explicit ProgressThread(Messenger& messenger);
  ~ProgressThread();
  ProgressThread(const ProgressThread&) = delete;
  ProgressThread& operator=(const ProgressThread&) = delete;

 private:
  Messenger& messenger_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace annulus
