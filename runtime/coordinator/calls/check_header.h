// What a call's header must be before room is taken for its tensors, which have shapes and no data
// yet. Pure functions.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "annulus/types.h"

namespace annulus {

// INVALID_ARGUMENT names the tensor that cannot be one of the context's. The bytes of the answer's
// tensors.
absl::StatusOr<int64_t> CheckHeader(const ContextSpec& spec, const AppendRequest& header);
absl::StatusOr<int64_t> CheckHeader(const ContextSpec& spec, const AttendRequest& header);

}  // namespace annulus
