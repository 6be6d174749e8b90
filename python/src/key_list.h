// Lists of keys from Python: _core.KeyList, and the dict of them that a call brings. To be used
// with the GIL held.
#pragma once

#include <vector>

#include "annulus/key_list.h"
#include "python/src/nanobind.h"

namespace annulus::python {

// {name: KeyList}.
std::vector<CallList> ListsOf(const nb::dict& lists);

// The other way round.
nb::dict ToPython(const std::vector<CallList>& lists);

void AddKeyList(nb::module_& module);

}  // namespace annulus::python
