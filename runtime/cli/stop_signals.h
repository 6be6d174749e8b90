// What a command that holds something in a service does about the signals that end it: its calls
// are cancelled, so that it can give back what it holds. Not thread-safe, but for the tokens.
#pragma once

#include <signal.h>

#include <atomic>
#include <thread>

#include "annulus/cancel_token.h"
#include "runtime/cli/process.h"

namespace annulus {

// To be made before the process has other threads: they inherit that the signals wait. While it
// lives, output that nobody reads any more is an error of the stream instead of SIGPIPE.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  // From now on a signal cancels; before, it ends the process as ever.
  void Hold() { holds_ = true; }

  const CancelToken& first() const { return first_; }    // cancelled by the first signal
  const CancelToken& second() const { return second_; }  // by the next one: for the giving back

  // The first signal that came, or 0.
  int signal() const { return signal_; }

 private:
  void Watch();

  sigset_t mask_before_;
  void (*pipe_before_)(int);
  Signals signals_;
  const CancelToken first_ = CancelToken::New();
  const CancelToken second_ = CancelToken::New();
  std::atomic<bool> holds_ = false;
  std::atomic<bool> done_ = false;
  std::atomic<int> signal_ = 0;
  std::thread watcher_;
};

}  // namespace annulus
