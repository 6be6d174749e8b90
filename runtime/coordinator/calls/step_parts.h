// What the requests of one Step must be together, and how they are cut.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/types.h"
#include "runtime/coordinator/calls/call_planner.h"

namespace annulus {

// INVALID_ARGUMENT for more than kStepsMax.
absl::Status CheckStepCount(size_t count);

// The requests whose layer of a context another one has too, and the INVALID_ARGUMENT that names
// both: which of them should come first nobody says, so that none is carried out.
std::vector<std::pair<size_t, absl::Status>> RepeatedSteps(absl::Span<const StepRequest> requests);

// Of some steps that are one call: each one's end, or why the call never began.
using StepPartResults = absl::StatusOr<std::vector<absl::StatusOr<StepResult>>>;

// Has `step` carry the requests out, some at a time: up to kStepsAtOnceMax, and fewer where it says
// INVALID_ARGUMENT of several, which are too large together. One that is repeated fails alone, and
// so does one that names a list which is not kept for the tenant (KeptLists). Their ends in the
// order of the requests.
std::vector<absl::StatusOr<StepResult>> StepInParts(
    absl::Span<const StepRequest> requests, const std::string& tenant, CallPlanner& planner,
    absl::FunctionRef<StepPartResults(absl::Span<const StepRequest>)> step);

}  // namespace annulus
