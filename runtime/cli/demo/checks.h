// What the demo holds an answer against: the planted associations and the float64 oracle.
// Pure functions but for the threads they use. Thread-safe.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "annulus/tensor.h"
#include "attention/pattern.h"
#include "runtime/cli/demo/data.h"

namespace annulus {

// Counts (association, query head) pairs over the queries made for an association.
struct Recall {
  int64_t asked = 0;
  int64_t visible = 0;    // the pattern lets the query see the planted key
  int64_t found = 0;      // … and the answer is its value
  int64_t stray = 0;      // the answer is its value though the pattern hides the key
  int64_t keys_seen = 0;  // associations that at least one head sees

  bool complete() const { return found == visible && stray == 0; }
};

// Adds the answer out [kDemoHeads, kDemoDim] of the query for `association` at `position`.
void AddToRecall(const DemoData& data, const Pattern& pattern, int association, int64_t position,
                 const float* out, Recall* recall);

// An answer to be compared with the oracle: all heads of one query, copied.
struct SampledRow {
  size_t phase = 0;  // which the row is of; for its owner
  const Pattern* pattern = nullptr;
  int64_t position = 0;   // of the query
  int64_t kv_tokens = 0;  // of the context then
  Tensor q;               // bf16 [1, kDemoHeads, kDemoDim]
  Tensor out;             // f32 [1, kDemoHeads, kDemoDim]
  Tensor lse;             // f32 [1, kDemoHeads, 1]
  // Filled in: the worst over the heads of ‖out − oracle‖ / ‖oracle‖ and of
  // |lse − oracle| / max(1, |oracle|).
  double out_error = 0;
  double lse_error = 0;
};

// A contiguous copy of one token of any tensor.
Tensor CopyToken(const TensorView& tensor, int64_t token);

// Makes the context again, one KV head at a time (2·kDemoDim bf16 per token are held), and
// compares. A row that sees no key must be out 0, lse −inf: anything else has an infinite error.
absl::Status CompareWithOracle(const DemoData& data, float scale, absl::Span<SampledRow> rows);

}  // namespace annulus
