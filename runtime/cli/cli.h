// The program: finds the command and turns its status into an exit code.
#pragma once

#include "runtime/cli/commands.h"

namespace annulus {

// `args` without the program's name. 0 ok; 2 bad usage, input, path or non-finite scale; 1 else.
// An error is one line on console.err.
int RunCli(const Arguments& args, const Console& console);

}  // namespace annulus
