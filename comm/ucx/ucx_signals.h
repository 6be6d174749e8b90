// UCX takes signals when its library is loaded, before main. To be called once, by the main
// function of a program, before it has other threads.
#pragma once

namespace annulus {

// Signals are again what they were when the process started: SIGHUP ends it, or is ignored (nohup),
// and a crash leaves a core file and no words of UCX.
void GiveBackSignals();

}  // namespace annulus
