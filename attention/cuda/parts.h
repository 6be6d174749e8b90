// A long prefill is done in two parts, so that the GPU computes the first while the host lists the
// blocks of the second. Pure.
#pragma once

#include <vector>

#include "absl/types/span.h"
#include "attention/backend.h"

namespace annulus::cuda {

// The batch in parts whose rows of `into` are disjoint: one problem of many rows over pages on the
// device is cut between query blocks, the smaller part first; any other batch stays as it is.
std::vector<std::vector<AttendArgs>> PartsOf(absl::Span<const AttendArgs> batch);

}  // namespace annulus::cuda
