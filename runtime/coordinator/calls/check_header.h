// What a call's header must be before room is taken for its tensors, which have shapes and no data
// yet. Thread-safe functions.
#pragma once

#include "absl/status/statusor.h"
#include "annulus/types.h"
#include "runtime/coordinator/calls/call_planner.h"
#include "runtime/coordinator/core/events.h"
#include "runtime/service/service.h"

namespace annulus {

// INVALID_ARGUMENT names the tensor that cannot be one of the context's. The work is known of an
// Attend that was planned before.
absl::StatusOr<CallSize> CheckHeader(const ShardMap& map, const AppendRequest& header,
                                     CallPlanner& planner);
absl::StatusOr<CallSize> CheckHeader(const ShardMap& map, const AttendRequest& header,
                                     CallPlanner& planner);

}  // namespace annulus
