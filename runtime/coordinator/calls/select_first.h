// Calls whose patterns may choose keys by data. Those that do go to the workers twice: first each
// worker scores what it holds, after it has stored what a step appends; then the queries see what
// was chosen. Calls on the caller's thread; thread-safe.
#pragma once

#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/coordinator/calls/attend_call.h"
#include "runtime/coordinator/calls/batch_call.h"
#include "runtime/coordinator/calls/step_parts.h"

namespace annulus {

// Carries a batch out, to its end.
using RunCall = absl::FunctionRef<absl::StatusOr<action::Finish>(BatchCall& call)>;

absl::StatusOr<AttendResult> SelectAndAttend(const AttendRequest& request, const CallContext& call,
                                             CallPlanner& planner, const Clock& clock, RunCall run);

// INVALID_ARGUMENT for a pattern without such words.
absl::StatusOr<SelectResult> SelectAlone(const SelectRequest& request, const CallContext& call,
                                         CallPlanner& planner, const Clock& clock, RunCall run);

// A step whose second part fails stays appended: a repetition of it, by its key, attends again.
StepPartResults SelectAndStep(absl::Span<const StepRequest> steps, const CallContext& call,
                              CallPlanner& planner, const Clock& clock, RunCall run);

}  // namespace annulus
