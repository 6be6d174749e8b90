// All backends that run here, the CPU one once per instruction set that this machine has. One
// thread.
#pragma once

#include <functional>

#include "attention/backend.h"

namespace annulus {

// Calls `test` for each of them, named in its failures; the choice of instruction set is left as it
// was.
void ForEachBackend(const std::function<void(Backend*)>& test);

// Calls `test` with each instruction set of this machine chosen for the CPU's kernels.
void ForEachSimdTarget(const std::function<void()>& test);

}  // namespace annulus
