// The column pass of one holder of keys: how much each key weighs in the softmax of some queries,
// summed over them, as SnapKV and H2O do. A query at position p sees the keys up to p. It has two
// halves: first each query's sum of exponentials over the keys of each holder, which merge; then,
// by the whole sums, each key's weight. Queries come to the keys, and nothing of the keys moves.
//
// Everything is canonical: a score is the f32 of select/scores.h times the scale; its exponential a
// polynomial in f64 whose products and sums are rounded one by one, on every instruction set;
// sums over keys are exact (ExpSum), and those over queries go by query head, then by row. So a
// weight depends on the queries and the context alone, never on tile, thread or worker.
// Thread-safe functions of values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "annulus/tensor.h"
#include "attention/block_set.h"
#include "attention/column_selector.h"
#include "attention/select/choose.h"
#include "attention/select/exp_sum.h"

namespace annulus {

// The queries that read one KV head.
class ColumnQueries {
 public:
  // q [rows, group, head_dim], rounded to the keys' dtype, at positions q_begin and on; keys at and
  // beyond kv_tokens do not exist. scale: of scores, finite.
  ColumnQueries(const TensorView& q, int64_t q_begin, int64_t kv_tokens, float scale);

  int64_t rows() const { return rows_; }
  int64_t group() const { return group_; }
  int64_t kv_tokens() const { return kv_tokens_; }

  // Adds what the keys of `blocks` weigh to each row's sum: sums [group, rows]. A score that is not
  // finite, or as large as 2^28, spoils its row's. Errors are those of the memory space.
  absl::Status AddSums(const SelectKeys& keys, int kv_head, absl::Span<const int64_t> blocks,
                       absl::Span<ExpSum> sums) const;

  // Each key's weight, summed over all rows and heads: votes f32 [tokens of blocks], one block
  // after the other. `logs` [group, rows]: ExpSum::Log2 of the whole sums, finite.
  absl::Status Votes(const SelectKeys& keys, int kv_head, absl::Span<const int64_t> blocks,
                     absl::Span<const double> logs, float* votes) const;

  // What each query head's weights are along columns and diagonals, one block after the other.
  // Columns are those of keys, summed over rows: f32 [blocks, group, tokens of the block].
  // Diagonals are those of distances q − k, in units of kWeightUnit, to which each weight is
  // rounded, so that sums over blocks are exact: [blocks, group, diagonals()], the j-th of a block
  // that begins at b of the distance q_begin − b − kBlockTokens + 1 + j. REQUIRES: at most
  // kDiagonalRowsMax rows.
  static constexpr int64_t kDiagonalRowsMax = 1024;
  int64_t diagonals() const { return rows_ + kBlockTokens - 1; }
  absl::Status Diagonals(const SelectKeys& keys, int kv_head, absl::Span<const int64_t> blocks,
                         absl::Span<const double> logs, float* columns, uint64_t* diagonals) const;

  // The same weights summed over spans of kSpanTokens, in kWeightUnit: [blocks, group,
  // SpanWeights(rows)], of each head first that of the block's keys, then those of the spans of
  // distances from FirstSpan on. And the sums of the block's keys up to the last query, in f64 and
  // their order, rounded: f32 [blocks, head_dim]. REQUIRES: at most kDiagonalRowsMax rows.
  static int64_t SpanWeights(int64_t rows) {
    return 3 + (rows + kBlockTokens - 3) / kSpanTokens;  // one, and what so many distances touch
  }
  static int64_t FirstSpan(int64_t q_begin, int64_t block) {
    return std::max<int64_t>(0, q_begin - (block + 1) * kBlockTokens + 1) / kSpanTokens;
  }
  absl::Status Spans(const SelectKeys& keys, int kv_head, absl::Span<const int64_t> blocks,
                     absl::Span<const double> logs, uint64_t* weights, float* key_sums) const;

 private:
  // body(first token, tokens, their rows f32 [tokens, dim], scores [tokens, group, rows]) of each.
  template <typename Body>
  absl::Status ForEachBlock(const SelectKeys& keys, int kv_head, absl::Span<const int64_t> blocks,
                            Body body) const;
  // The first row that sees a key at this position.
  int64_t FirstRow(int64_t position) const;
  class Weigher;

  const int64_t rows_;
  const int64_t group_;
  const int64_t dim_;
  const int64_t q_begin_;
  const int64_t kv_tokens_;
  const double factor_;         // of a score: the scale, to base 2
  std::vector<double> values_;  // [group, rows, dim]
};

}  // namespace annulus
