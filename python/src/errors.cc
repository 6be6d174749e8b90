#include "python/src/errors.h"

#include <string>

#include "annulus/retry_hint.h"

namespace annulus::python {

nb::object ExceptionOf(const absl::Status& status) {
  nb::object retry_after = nb::none();
  if (const auto hint = RetryAfter(status); hint.has_value()) {
    retry_after = nb::cast(absl::ToDoubleSeconds(*hint));
  }
  return nb::module_::import_("annulus.errors")
      .attr("error_of")(absl::StatusCodeToString(status.code()), std::string(status.message()),
                        retry_after);
}

void Raise(const absl::Status& status) {
  const nb::object error = ExceptionOf(status);
  PyErr_SetObject(error.type().ptr(), error.ptr());
  throw nb::python_error();
}

}  // namespace annulus::python
