#include "runtime/coordinator/coordinator_options.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace annulus {

absl::Status CheckOptions(const CoordinatorOptions& options) {
  if (options.fabric == nullptr) {
    return absl::InvalidArgumentError("fabric: null; expected the coordinator's fabric");
  }
  if (options.heartbeat_timeout < 2 * options.heartbeat_period ||
      options.heartbeat_period <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("heartbeat_timeout: ", absl::FormatDuration(options.heartbeat_timeout),
                     "; expected at least twice heartbeat_period ",
                     absl::FormatDuration(options.heartbeat_period), ", which must be positive"));
  }
  return absl::OkStatus();
}

Incarnation IncarnationOf(const CoordinatorOptions& options) {
  const int64_t now_us = absl::ToUnixMicros(options.clock->Now());
  return {static_cast<uint64_t>(std::max<int64_t>(1, now_us)), options.recovery_wait,
          LinkKey::Random()};
}

}  // namespace annulus
