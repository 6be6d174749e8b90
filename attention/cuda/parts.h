// A long prefill is done in parts, so that the GPU computes one while the host lists the blocks of
// the next. Pure.
#pragma once

#include <vector>

#include "absl/types/span.h"
#include "attention/backend.h"

namespace annulus::cuda {

// The batch in parts whose rows of `into` are disjoint: one problem of many rows over pages on the
// device is cut between query blocks, smaller parts first; any other batch stays as it is.
std::vector<std::vector<AttendArgs>> PartsOf(absl::Span<const AttendArgs> batch);

}  // namespace annulus::cuda
