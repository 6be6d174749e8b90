// Calls whose patterns may choose keys by data. Those that do go to the workers twice: first each
// worker scores what it holds, after it has stored what a step appends; then the queries see what
// was chosen. Words that choose by a call's last queries take a column pass before that. Calls on
// the caller's thread; thread-safe.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/coordinator/calls/attend_call.h"
#include "runtime/coordinator/calls/batch_call.h"
#include "runtime/coordinator/calls/column_call.h"
#include "runtime/coordinator/calls/step_parts.h"

namespace annulus {

absl::StatusOr<AttendResult> SelectAndAttend(const AttendRequest& request, const CallContext& call,
                                             CallPlanner& planner, const Clock& clock, LookAt look,
                                             RunTrip run_trip, RunCall run);

// INVALID_ARGUMENT for a pattern without such words.
absl::StatusOr<SelectResult> SelectAlone(const SelectRequest& request, const CallContext& call,
                                         CallPlanner& planner, const Clock& clock, LookAt look,
                                         RunTrip run_trip, RunCall run);

// A step whose second part fails stays appended: a repetition of it, by its key, attends again.
StepPartResults SelectAndStep(absl::Span<const StepRequest> steps, const CallContext& call,
                              CallPlanner& planner, const Clock& clock, RunCall run);

}  // namespace annulus
