// Which blocks FlexPrefill shows, in float64 and by the definition in select/flexprefill.cc, with
// which it shares no code: what flexprefill in patterns is compared with. Slow: keeps all weights.
// Thread-safe function.
#pragma once

#include <cstdint>
#include <vector>

#include "annulus/tensor.h"

namespace annulus {

struct ReferenceBlocks {
  bool query_aware = false;
  // [blocks of queries, from the first query's on][blocks of keys, up to the last query's], of 128.
  std::vector<std::vector<bool>> seen;
};

// Of one query head of q [rows, heads, dim] at q_begin and on, which reads `kv_head` of
// k [tokens, kv_heads, dim]; each query's position has a key. Scores are scale·q·k.
ReferenceBlocks ReferenceFlexPrefill(const TensorView& q, int64_t q_begin, int head,
                                     const TensorView& k, int kv_head, float scale, double gamma,
                                     double tau, int64_t least_tokens);

}  // namespace annulus
