// annulus._core.Client: the C++ client (annulus/client.h) for Python's (annulus/client.py), which
// gives it the keywords, the defaults and the words of its documentation. Thread-safe.
#pragma once

#include "python/src/nanobind.h"

namespace annulus::python {

void AddClient(nb::module_& module);

}  // namespace annulus::python
