// What a coordinator makes of its options before it starts. Thread-safe functions.
#pragma once

#include "absl/status/status.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/coordinator/core/events.h"

namespace annulus {

// INVALID_ARGUMENT names the option.
absl::Status CheckOptions(const CoordinatorOptions& options);

// That of a coordinator which starts now.
Incarnation IncarnationOf(const CoordinatorOptions& options);

}  // namespace annulus
