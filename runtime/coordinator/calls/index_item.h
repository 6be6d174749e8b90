// The items of calls that may bring index queries. These are an item of their own, in the track's
// layer: the call's first trip to the workers has both, and the queries wait for what the index
// chooses. Where a step of the same call appends the track's rows, its item takes the index queries
// along. Pure functions.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/coordinator/calls/batch_call.h"

namespace annulus {

// The item at its place in `requests`, and behind them those of index queries. The requests must
// outlive them.
std::vector<CallItem> ItemsOf(const AttendRequest& request);
std::vector<CallItem> ItemsOf(absl::Span<const StepRequest> requests);

// Whether index queries can be those of a call of `q_tokens` queries: INVALID_ARGUMENT names the
// field. Needs no data of theirs.
absl::Status CheckIndexQueries(const ShardMap& map, const IndexQueries& index, int64_t q_tokens);

// An error of an item of index queries, as the caller who brought them is told it.
absl::Status OfIndex(const absl::Status& status);

}  // namespace annulus
