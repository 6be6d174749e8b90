// nanobind, with the conversions that the module uses: all files of a module must see the same.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace annulus::python {
namespace nb = nanobind;
}  // namespace annulus::python
