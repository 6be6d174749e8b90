// Which keys MInference's vertical-slash shows, in float64 and by the definition: what minference
// in patterns is compared with. Shares no code with select/. Slow: keeps all weights. Thread-safe
// functions.
#pragma once

#include <cstdint>
#include <vector>

#include "annulus/tensor.h"

namespace annulus {

struct ReferenceWeights {
  std::vector<double> by_key;         // [kv_tokens]
  std::vector<uint64_t> by_distance;  // [kv_tokens]: of weights as multiples of 2^-52
};

// The weights of the softmax of queries q [rows, heads, dim] at q_begin and on, all among the
// first kv_tokens tokens, of one query head, which reads `kv_head` of k [tokens, kv_heads, dim]:
// summed by key and by q − k. A query sees the keys up to itself; scores are scale·q·k.
ReferenceWeights ReferenceDiagonals(const TensorView& q, int64_t q_begin, int head,
                                    const TensorView& k, int kv_head, int64_t kv_tokens,
                                    float scale);

// Whether minference(verticals,slashes) shows query q key k: [kv_tokens, kv_tokens]. Weights by key
// count as f32.
std::vector<std::vector<bool>> ReferenceMInference(const ReferenceWeights& weights,
                                                   int64_t verticals, int64_t slashes,
                                                   int64_t kv_tokens);

}  // namespace annulus
