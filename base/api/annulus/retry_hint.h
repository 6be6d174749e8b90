// When to try again: a duration that an error may carry beside its message. Who refuses for want of
// room (RESOURCE_EXHAUSTED) knows best when there may be some; the client library waits that long.
// Pure functions, thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"

namespace annulus {

inline constexpr char kRetryAfterUrl[] = "annulus/retry_after_ms";

// The same error with the hint, rounded up to a millisecond. OK stays OK.
inline absl::Status WithRetryAfter(absl::Status status, absl::Duration wait) {
  const int64_t wait_ms = absl::ToInt64Milliseconds(absl::Ceil(wait, absl::Milliseconds(1)));
  status.SetPayload(kRetryAfterUrl, absl::Cord(std::to_string(std::max<int64_t>(1, wait_ms))));
  return status;
}

// absent: the error has no hint.
inline absl::optional<absl::Duration> RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> hint = status.GetPayload(kRetryAfterUrl);
  if (!hint.has_value()) return absl::nullopt;
  return absl::Milliseconds(std::atoll(std::string(*hint).c_str()));
}

}  // namespace annulus
