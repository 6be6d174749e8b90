// Which keys of a KV head queries vote for, in float64 and by the definition: what column passes
// are compared with. Shares no code with select/. Slow: keeps all weights. Thread-safe functions.
#pragma once

#include <cstdint>
#include <vector>

#include "annulus/tensor.h"

namespace annulus {

// Each key's weight in the softmax of the queries q [rows, heads, dim] at q_begin and on, summed
// over rows and over the query heads that read `kv_head` of k [tokens, kv_heads, dim]. A query at
// position p sees keys up to p of the first kv_tokens; scores are scale·q·k.
std::vector<double> ReferenceVotes(const TensorView& q, int64_t q_begin, const TensorView& k,
                                   int kv_head, int64_t kv_tokens, float scale);

// What SnapKV keeps of them: the last `recent` keys, and the keep − recent before them whose votes,
// pooled by their largest over `width` around each, are highest; the lowest first of equal ones.
// Votes count as f32. H2O's are those of width 1.
std::vector<int32_t> ReferenceSnapKv(const std::vector<double>& votes, int64_t keep, int64_t recent,
                                     int64_t width);

}  // namespace annulus
