// The program `annulus`.
#include <unistd.h>

#include <cstdlib>
#include <iostream>

#include "comm/ucx/ucx_signals.h"
#include "runtime/cli/cli.h"
#include "runtime/protocol/public/channel.h"

ANNULUS_HOLD_SIGNALS_EARLY;

int main(int argc, char** argv) {
  annulus::GiveBackSignals();
  annulus::SilenceLibraries();
  const annulus::Console console{
      [](const std::string& name) -> const char* { return std::getenv(name.c_str()); }, &std::cout,
      &std::cerr, isatty(STDOUT_FILENO) == 1, isatty(STDERR_FILENO) == 1};
  return annulus::RunCli(annulus::Arguments(argv + 1, argv + argc), console);
}
