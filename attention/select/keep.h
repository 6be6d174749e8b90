// Which keys of a KV head are kept, by the votes that queries gave them (columns.h): the last ones,
// and of those before them the ones of most votes. SnapKV (2404.14469) pools the votes, so that
// what stands beside a key that matters stays with it; H2O (2306.14048) does not. Pure function.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "annulus/types.h"

namespace annulus {

// The positions that are kept, ascending: all if there are no more than rule.keep, else that many.
// A vote is pooled over the votes around it, rule.pool_width in all, of those before the last
// rule.recent keys: their largest, or their sum in f64 over the width, where what would lie beyond
// the ends counts 0. Of equal pooled votes, as f32, the lowest position is kept.
// votes: f32 [keys], of key 0 first. REQUIRES: 1 ≤ keep, 0 ≤ recent ≤ keep, an odd width ≥ 1.
std::vector<int32_t> KeysKept(absl::Span<const float> votes, const KeepRule& rule);

}  // namespace annulus
