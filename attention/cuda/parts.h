// A long prefill is done in parts, so that the GPU computes one while the host lists the blocks of
// the next; one whose queries have lists of their own, so that several threads list them. Pure.
#pragma once

#include <vector>

#include "absl/types/span.h"
#include "attention/backend.h"

namespace annulus::cuda {

// The batch in parts whose rows of `into` are disjoint: one problem of many rows over pages on the
// device is cut between query blocks, smaller parts first, or into about equal ones if its lists
// are by query; any other batch stays as it is.
std::vector<std::vector<AttendArgs>> PartsOf(absl::Span<const AttendArgs> batch);

}  // namespace annulus::cuda
