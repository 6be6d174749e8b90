// The commands of the program, one file each. A command takes its arguments (without program and
// command) and a console; INVALID_ARGUMENT is the user's to mend (exit 2), anything else is not
// (exit 1). What a command was asked for is on `out`: one line per object with --json, which is for
// scripts, else a text for people (attend and demo, whose output is files, write that one on
// `err`). What happens meanwhile, and errors, are on `err`. Each command may use the process
// (signals, children) as its own.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/cli/options/options.h"

namespace annulus {

struct Console {
  Environment environment;
  std::ostream* out = nullptr;
  std::ostream* err = nullptr;
  bool out_is_terminal = false;
  bool err_is_terminal = false;
  std::vector<std::string> variables = {};  // names of all in the environment
};

using Arguments = std::vector<std::string>;

absl::Status RunAttend(const Arguments& args, const Console& console);
absl::Status RunExplain(const Arguments& args, const Console& console);
absl::Status RunMethods(const Arguments& args, const Console& console);
absl::Status RunQuality(const Arguments& args, const Console& console);
absl::Status RunUp(const Arguments& args, const Console& console);
absl::Status RunStatus(const Arguments& args, const Console& console);
absl::Status RunContexts(const Arguments& args, const Console& console);
absl::Status RunRelease(const Arguments& args, const Console& console);
absl::Status RunDemo(const Arguments& args, const Console& console);
absl::Status RunCoordinator(const Arguments& args, const Console& console);
absl::Status RunWorker(const Arguments& args, const Console& console);
absl::Status RunVersion(const Arguments& args, const Console& console);

}  // namespace annulus
