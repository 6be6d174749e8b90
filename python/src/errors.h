// Errors of the library as Python's exceptions (annulus/errors.py). To be used with the GIL held.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "python/src/nanobind.h"

namespace annulus::python {

// The exception that an error becomes: its code, message and retry hint.
nb::object ExceptionOf(const absl::Status& status);

// The library names a batch's parts requests[i]; here they are steps[i].
absl::Status WithStepsName(const absl::Status& status);

[[noreturn]] void Raise(const absl::Status& status);

// An InvalidArgument again, with `prefix` before the field that it names; any other error as it is.
[[noreturn]] void RaiseWithin(const std::string& prefix, nb::python_error& error);

inline void RaiseUnlessOk(const absl::Status& status) {
  if (!status.ok()) Raise(status);
}

template <typename T>
T ValueOrRaise(absl::StatusOr<T> value) {
  if (!value.ok()) Raise(value.status());
  return *std::move(value);
}

}  // namespace annulus::python
