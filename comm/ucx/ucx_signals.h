// UCX takes signals when its library is loaded, before main. A program that loads it gives them
// back.
#pragma once

namespace annulus {

// Holds SIGHUP from before any library is loaded until GiveBackSignals: UCX would swallow one that
// comes meanwhile. To be named by ANNULUS_HOLD_SIGNALS_EARLY, and not to be called.
void HoldSignals();

// Signals are again what they were when the process started: SIGHUP ends it, or is ignored (nohup),
// and a crash leaves a core file and no words of UCX. To be called once, by the main function of a
// program, before it has other threads.
void GiveBackSignals();

}  // namespace annulus

// Stands once in the source of a program's main function, outside of all functions. A shared
// library cannot have it.
#define ANNULUS_HOLD_SIGNALS_EARLY                                                       \
  __attribute__((section(".preinit_array"), used)) static void (*const hold_signals)() = \
      annulus::HoldSignals
