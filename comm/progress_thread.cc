#include "comm/progress_thread.h"

namespace annulus {

ProgressThread::ProgressThread(Messenger& messenger)
    : messenger_(messenger), thread_([this] {
        while (!stop_.load()) messenger_.Poll(absl::Seconds(1));
      }) {}

ProgressThread::~ProgressThread() {
  stop_.store(true);
  messenger_.Wake();
  thread_.join();
}

}  // namespace annulus
