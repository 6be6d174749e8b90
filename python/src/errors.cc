#include "python/src/errors.h"

#include <string>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
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

void RaiseWithin(const std::string& prefix, nb::python_error& error) {
  const nb::object kind = nb::module_::import_("annulus.errors").attr("InvalidArgument");
  if (!error.matches(kind)) throw std::move(error);
  const std::string message = nb::cast<std::string>(nb::str(error.value()));
  Raise(absl::InvalidArgumentError(prefix + message));
}

absl::Status WithStepsName(const absl::Status& status) {
  absl::string_view message = status.message();
  if (!absl::ConsumePrefix(&message, "requests[")) return status;
  absl::Status named(status.code(), absl::StrCat("steps[", message));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { named.SetPayload(url, payload); });
  return named;
}

}  // namespace annulus::python
