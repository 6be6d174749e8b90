// What needs no service: attention over arrays, and partial answers put together. Thread-safe.
#pragma once

#include "python/src/nanobind.h"

namespace annulus::python {

void AddFunctions(nb::module_& module);

}  // namespace annulus::python
