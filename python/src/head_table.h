// _core.HeadTable. To be used with the GIL held.
#pragma once

#include "python/src/nanobind.h"

namespace annulus::python {

void AddHeadTable(nb::module_& module);

}  // namespace annulus::python
