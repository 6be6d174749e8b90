#include "runtime/cli/stop_signals.h"

#include <pthread.h>

#include "absl/time/time.h"

namespace annulus {
namespace {

sigset_t MaskOfThisThread() {
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  return mask;
}

// Ends the process by `signal`, as if nobody had waited for it.
void EndBy(int signal) {
  ::signal(signal, SIG_DFL);
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, signal);
  pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
  raise(signal);
}

}  // namespace

StopSignals::StopSignals()
    : mask_before_(MaskOfThisThread()),
      pipe_before_(::signal(SIGPIPE, SIG_IGN)),
      watcher_([this] { Watch(); }) {}

StopSignals::~StopSignals() {
  done_ = true;
  pthread_kill(watcher_.native_handle(), SIGCHLD);  // the watcher waits for that one too
  watcher_.join();
  ::signal(SIGPIPE, pipe_before_);
  pthread_sigmask(SIG_SETMASK, &mask_before_, nullptr);
}

void StopSignals::Watch() {
  while (!done_) {
    const int signal = signals_.Wait(absl::Hours(1));
    if (signal == 0 || signal == SIGCHLD) continue;
    if (!holds_) EndBy(signal);
    int none = 0;
    if (signal_.compare_exchange_strong(none, signal)) {
      first_.Cancel();
    } else {
      second_.Cancel();
    }
  }
}

}  // namespace annulus
