// A first look at tokens in f32: bounds of their canonical scores by an index (scores.h), which
// tell of most tokens that they cannot be among the best of a list, so that the rest alone are
// scored in f64. What is chosen is the same, bit for bit.
//
// How far a look may be off. Let u = 2^-24, n = dim, H = heads, W = Σ|w_j|, and let
// S = Σ_j |w_j| Σ_c |q_jc|·M_c with M_c the largest |k_c| of a block; a list that does not weigh
// has one query with w = 1, and H = 0. For each token k of the block:
//   A product q_j·k in f32, added up in any order, is off by (n+1)u Σ_c |q_jc k_c| at most, one u
//   of them for q rounded to f32. max(0, ·) brings nothing farther apart. The sum over j adds
//   (H+2)u S. The canonical score is rounded twice, 2u S, and what f64 loses is less than another.
//   Together: less than (n+H+8)u S.
//   What S itself loses in f32, and a score to which its bound is added, are less than 8u S more,
//   and products of errors less than once more as much as all, since n+H < 2^20.
// So a score is not farther off than 2(n+H+16)u S. Where numbers are subnormal, an operation loses
// up to 2^-126 times its other factor if the processor takes them for 0: in all less than 2^-120
// (ΣA_c + (W+1)(n+H+n·max M)) with A_c = Σ_j |w_j q_jc|. Where a product or a sum might exceed f32,
// or is no number, nothing is known. Thread-compatible values, but for Floor.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "absl/types/span.h"
#include "annulus/dtype.h"
#include "attention/block_set.h"

namespace annulus {

// Rows of keys, one behind the other.
struct KeyRows {
  const std::byte* first = nullptr;
  size_t stride_bytes = 0;
  int count = 0;
  DType dtype = DType::kF32;

  const std::byte* Row(int t) const { return first + static_cast<size_t>(t) * stride_bytes; }
};

// A block's tokens as looks want them, one block after the other.
class ScreenBlock {
 public:
  // Of rows of a multiple of 8 dims. `by_pairs`: see ScreenQueries.
  ScreenBlock(int dim, bool by_pairs);

  // REQUIRES: at most kBlockTokens rows, which stay where they are. Memory is asked for those of
  // the next block.
  void Take(const KeyRows& rows, const KeyRows& next);

  bool by_pairs() const { return by_pairs_; }
  const KeyRows& rows() const { return rows_; }
  const KeyRows& next() const { return next_; }
  const float* k() const { return k_.data(); }  // f32 [kBlockTokens, dim], but by pairs
  // Of each dim the largest magnitude; and of all.
  const float* largest() const { return largest_.data(); }
  float max() const { return max_; }

 private:
  const size_t dim_;
  const bool by_pairs_;
  KeyRows rows_, next_;
  std::vector<float> k_;
  std::vector<float> largest_;
  float max_ = 0;
};

// The index queries of one row, as a look wants them.
class ScreenQueries {
 public:
  // q [heads, dim], finite f32 values or near them; weights [heads], or null: a list for each head.
  // REQUIRES: dim a multiple of 8.
  ScreenQueries(absl::Span<const double> q, int dim, const float* weights);

  // Whether bf16 tokens can be looked at as they are, two dims at a time (screen_bf16.h): all
  // queries have bf16 values, and this machine can.
  bool by_pairs() const { return !pairs_.empty(); }

  int lists() const { return weights_.empty() ? heads_ : 1; }
  // Floats from a token's scores to the next one's: lists(), or more.
  size_t stride() const { return weights_.empty() ? padded_ : 1; }
  // Floats that Look() writes at `scores`.
  size_t score_floats() const { return static_cast<size_t>(kBlockTokens) * padded_; }

  // Of a block's first tokens: scores [tokens, stride()], and for each list what none of them is
  // farther than from the canonical one, +∞ where nothing is known. REQUIRES: by_pairs() where the
  // block is.
  void Look(const ScreenBlock& block, int tokens, float* scores, float* errors) const;

 private:
  void PackPairs(absl::Span<const double> q);

  int heads_;
  int dim_;
  size_t padded_;                // heads, to whole vectors of any machine
  std::vector<float> q_;         // [dim, padded]
  std::vector<uint32_t> pairs_;  // of LookPairs
  std::vector<float> weights_;   // [padded]
  std::vector<float> sizes_;     // A_c [lists, dim]
  std::vector<float> lost_;      // [lists, 2]: of an error, what no factor has, and that of max M
  double largest_ = 0;           // |q|
};

// Of each list, the highest score of tokens whose scores lie `stride` apart; to [stride].
void HighestOf(const float* scores, int tokens, size_t stride, float* to);

// What the best units of a list are known to reach, by lower bounds of units that come in any
// order: the lowest of the best so far. A unit that is known to score less is not among them.
// Thread-safe.
class Floor {
 public:
  explicit Floor(int64_t picks) : picks_(static_cast<size_t>(picks)) {}

  float value() const { return value_.load(std::memory_order_relaxed); }
  // By units that did not come before.
  void Raise(absl::Span<const float> lower_bounds);

 private:
  const size_t picks_;
  std::mutex mutex_;
  std::vector<float> best_;
  std::atomic<float> value_ = -std::numeric_limits<float>::infinity();
};

}  // namespace annulus
