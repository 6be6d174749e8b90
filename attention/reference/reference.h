// The float64 oracle: attention by its definition, one row at a time, through Pattern::Allows.
// It shares no code with the fast backends, so that agreement with it means something.
// Slow: about 60 ns per visible key of 64 dims. Functions are thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/backend.h"

namespace annulus {

struct ReferenceAnswer {
  std::vector<double> out;  // [v_head_dim]; zeros if no key is seen
  double lse = 0;           // natural log; −inf if no key is seen
};

// Attention of one query at absolute `position` of a context of `kv_tokens` tokens over the keys of
// `kv_head` that `pattern` allows among the blocks `keys` (null: all). q [head_dim] is of dtype
// `q_dtype`; scores are scale·q·k. Any dtype is read exactly. INTERNAL if kv lacks a page that
// holds an allowed key.
absl::StatusOr<ReferenceAnswer> ReferenceRow(const std::byte* q, DType q_dtype, const KvTable& kv,
                                             int64_t kv_tokens, const Pattern& pattern, int kv_head,
                                             int64_t position, float scale,
                                             const BlockSet* keys = nullptr);

// How far a row's answer is from the oracle's: ‖out − expected‖ / ‖expected‖ and
// |lse − expected| / max(1, |expected|). A row that sees no key must be out 0, lse −∞: anything
// else has an infinite error, as has NaN.
struct RowError {
  double out = 0;
  double lse = 0;
};
RowError ErrorOf(const float* out, float lse, const ReferenceAnswer& expected);

// The oracle as a backend: every row by ReferenceRow, rounded to f32 once, then merged.
std::unique_ptr<Backend> MakeReferenceBackend(int threads);

}  // namespace annulus
