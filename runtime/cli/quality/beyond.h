// Whether one pattern shows what another does not. Pure.
#pragma once

#include <cstdint>
#include <optional>

#include "attention/pattern.h"

namespace annulus {

struct Pair {
  int kv_head = 0;
  int64_t query = 0;
  int64_t key = 0;
};

// A pair of a query of `queries` and a key of the first `tokens` that `pattern` shows and `dense`
// does not; nullopt where there is none. REQUIRES: both are for as many KV heads, lists bound.
std::optional<Pair> PairBeyond(const Pattern& pattern, const Pattern& dense, TokenRange queries,
                               int64_t tokens);

}  // namespace annulus
