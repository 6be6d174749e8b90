// What a caller's request must be before anything is done with it, whichever way it goes: no
// argument may end the caller's process, and every transport refuses the same in the same words.
// What a request must be for its context is the service's to say. Pure functions: INVALID_ARGUMENT
// names the field, its value and what was expected.
#pragma once

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "annulus/client.h"

namespace annulus {

absl::Status CheckRequest(const ContextSpec& spec);
absl::Status CheckRequest(const AppendRequest& request);
absl::Status CheckRequest(const AttendRequest& request);
absl::Status CheckRequest(const SelectRequest& request);
absl::Status CheckRequest(const CompressRequest& request);

// By request: OK for those that are well formed. One that is not, and each of two for the same
// layer of the same context, leaves the others alone; more than kStepsMax are all refused.
std::vector<absl::Status> CheckSteps(absl::Span<const StepRequest> requests);

}  // namespace annulus
