// The program `annulus`.
#include <unistd.h>

#include <cstdlib>
#include <iostream>

#include "absl/strings/string_view.h"
#include "base/lock_order.h"
#include "comm/ucx/ucx_signals.h"
#include "runtime/cli/cli.h"
#include "runtime/protocol/public/channel.h"

ANNULUS_HOLD_SIGNALS_EARLY;

namespace {

std::vector<std::string> Variables() {
  std::vector<std::string> names;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const absl::string_view text = *variable;
    names.emplace_back(text.substr(0, text.find('=')));
  }
  return names;
}

}  // namespace

int main(int argc, char** argv) {
  annulus::GiveBackSignals();
  annulus::ForgetLockOrder();
  annulus::SilenceLibraries();
  const annulus::Console console{
      [](const std::string& name) -> const char* { return std::getenv(name.c_str()); },
      &std::cout,
      &std::cerr,
      isatty(STDOUT_FILENO) == 1,
      isatty(STDERR_FILENO) == 1,
      Variables()};
  return annulus::RunCli(annulus::Arguments(argv + 1, argv + argc), console);
}
