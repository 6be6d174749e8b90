#include "comm/ucx/ucx_signals.h"

#include <ucs/debug/debug.h>

#include <csignal>

#include "comm/ucx/ucx_handles.h"

namespace annulus {

void GiveBackSignals() {
  SilenceUcx();  // it has words for each signal that it had not taken
  for (int signal = 1; signal < SIGRTMIN; ++signal) ucs_debug_disable_signal(signal);
}

}  // namespace annulus
