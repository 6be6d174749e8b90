// What calls take beside their requests, of what Python says. To be used with the GIL held.
#pragma once

#include <cmath>
#include <functional>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "annulus/client.h"
#include "python/src/arrays.h"
#include "python/src/errors.h"
#include "python/src/gil.h"
#include "python/src/nanobind.h"

namespace annulus::python {

// Raises InvalidArgument naming `field`.
inline absl::Duration SecondsOf(const char* field, double seconds) {
  if (std::isnan(seconds)) {
    Raise(absl::InvalidArgumentError(absl::StrCat(field, ": nan; expected seconds")));
  }
  return absl::Seconds(seconds);
}

inline CallOptions OptionsOf(std::optional<double> timeout, const CancelToken& cancel) {
  CallOptions call;
  if (timeout.has_value()) call.timeout = SecondsOf("timeout", *timeout);
  call.cancel = cancel;
  return call;
}

// Told by whichever thread sends. What it raises is reported and holds nothing up.
// The caller holds `told` until the call has ended: copies of this go on threads without the GIL.
inline std::function<void(int64_t, int64_t)> ProgressOf(nb::handle told) {
  if (told.is_none()) return {};
  return [told](int64_t done, int64_t total) {
    const GilTaken taken;
    if (!taken) return;
    try {
      told(done, total);
    } catch (nb::python_error& error) {
      error.discard_as_unraisable("progress of an append");
    }
  };
}

// (layer, q, weights), as annulus/context.py hands it over; its q is borrowed.
inline IndexQueries IndexOf(nb::handle index, Borrowed* queries) {
  *queries = Borrow(index[1], "index.q");
  return {nb::cast<int>(index[0]), queries->view, nb::cast<std::vector<float>>(index[2])};
}

}  // namespace annulus::python
