#include "comm/ucx/ucx_signals.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <ucs/debug/debug.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>

#include "comm/ucx/ucx_handles.h"

namespace annulus {
namespace {

// A signal set as the kernel has it.
constexpr uint64_t kHangUp = uint64_t{1} << (SIGHUP - 1);

// Whether SIGHUP is held, and was not before.
bool holds = false;

}  // namespace

// Runs before the C library and the sanitizers' are set up: nothing of theirs is used.
__attribute__((no_sanitize("address", "thread", "undefined"))) void HoldSignals() {
  uint64_t before = 0;
  if (syscall(SYS_rt_sigprocmask, SIG_BLOCK, &kHangUp, &before, sizeof before) != 0) return;
  holds = (before & kHangUp) == 0;
}

void GiveBackSignals() {
  SilenceUcx();  // it has words for each signal that it had not taken
  for (int signal = 1; signal < SIGRTMIN; ++signal) ucs_debug_disable_signal(signal);
  if (!holds) return;
  sigset_t hang_up;
  sigemptyset(&hang_up);
  sigaddset(&hang_up, SIGHUP);
  pthread_sigmask(SIG_UNBLOCK, &hang_up, nullptr);
}

}  // namespace annulus
