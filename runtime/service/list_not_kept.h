// The error of a call whose list came by its handle alone where nothing is kept under it (any
// more). The client library makes the call again with the data. Pure functions, thread-safe.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/cord.h"

namespace annulus {

inline constexpr char kListNotKeptUrl[] = "annulus/list_not_kept";

inline absl::Status WithListNotKept(absl::Status status) {
  status.SetPayload(kListNotKeptUrl, absl::Cord("1"));
  return status;
}

inline bool IsListNotKept(const absl::Status& status) {
  return status.GetPayload(kListNotKeptUrl).has_value();
}

}  // namespace annulus
