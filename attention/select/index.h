// What one holder of a track's rows does for a selection by an index (attention/selector.h).
// Thread-safe function of values.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "attention/select/choose.h"

namespace annulus {

// For the rows [first, first + count) of all lists: the best picks_of_candidates, or all, of the
// units that have tokens in `blocks`, which ascend, by the scores of those tokens; in the order of
// Before(). Those of row r of list l go to best[l · q.tokens + r]. Errors are those of the memory
// space.
absl::Status BestByIndex(const SelectRows& rows, int64_t first, int64_t count,
                         const SelectKeys& keys, absl::Span<const int64_t> blocks,
                         absl::Span<std::vector<Candidate>> best);

}  // namespace annulus
