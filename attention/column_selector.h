// ColumnSelector: a word of the pattern language that chooses keys for all queries of a prompt by
// what its last ones see: how much of their softmax's weight falls on each key (columns of the
// matrix of weights) and on each distance (its diagonals). Steps of decode have no such queries and
// bring the list, or another pattern. Immutable values, shared between threads.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/key_list.h"
#include "annulus/tensor.h"
#include "attention/column_trip.h"
#include "attention/ranges.h"
#include "attention/selector.h"

namespace annulus {

// Whole weights count so much, to which each is rounded: their sums are exact.
inline constexpr double kWeightUnit = 0x1p-52;
// Keys, and distances, whose weights kSpans sums; they begin at multiples of it.
inline constexpr int64_t kSpanTokens = 128;

// A call, and the weights that its last queries give: each query's are those of its softmax over
// all keys up to itself, and here they are summed over these queries.
struct PromptWeights {
  TensorView q;               // [queries, heads, head_dim], any dtype: all of the call
  DType dtype = DType::kF32;  // that queries are rounded to: the keys'
  TokenRange queries = {};    // their positions; the last one's has a key
  int64_t kv_tokens = 0;
  int kv_heads = 1;
  float scale = 0;  // of scores
  // After kDiagonals, of each query head.
  absl::Span<const float> columns = {};       // [heads, kv_tokens], by key
  absl::Span<const uint64_t> diagonals = {};  // [heads, kv_tokens], by distance, in kWeightUnit
  // After kSpans, of each query head, in kWeightUnit; and the mean of each span's keys. Spans go up
  // to that of the last query, and the keys up to this query.
  absl::Span<const uint64_t> column_spans = {};    // [heads, spans], by key
  absl::Span<const uint64_t> diagonal_spans = {};  // [heads, spans], by distance
  absl::Span<const float> key_means = {};          // [kv_heads, spans, head_dim]

  int heads() const { return static_cast<int>(q.heads); }
  int64_t spans() const { return (queries.end - 1) / kSpanTokens + 1; }
};

class ColumnSelector : public Selector {
 public:
  const ColumnSelector* by_column() const final { return this; }

  bool ChoosesFor(TokenRange, int64_t, bool step) const final { return !step; }

  // How many queries are looked at, of a call that has so many: its last ones.
  int64_t last_queries() const { return last_queries_; }
  // The trip that brings their weights: kDiagonals or kSpans.
  ColumnTrip trip() const { return trip_; }

  // INVALID_ARGUMENT for more queries than the word's list has room for.
  virtual absl::Status CheckCall(TokenRange queries, int heads) const {
    (void)queries, (void)heads;
    return absl::OkStatus();
  }

  // The list that all queries of the call see by, for each query head. A pure function.
  // INVALID_ARGUMENT names queries whose scores f32 does not hold.
  virtual absl::StatusOr<KeyListData> Pick(const PromptWeights& weights) const = 0;

 protected:
  ColumnSelector(std::string name, ColumnTrip trip, int64_t last_queries, int64_t block_tokens)
      : Selector(std::move(name), Summary::kMean, block_tokens, /*picks=*/1),
        trip_(trip),
        last_queries_(last_queries) {}

 private:
  const ColumnTrip trip_;
  const int64_t last_queries_;
};

}  // namespace annulus
