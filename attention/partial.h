// The one idea: softmax attention over SOME of the keys, and how such partials combine.
//
// A partial holds out [rows, heads, v_head_dim] f32, normalised over the keys it saw, and
// lse [rows, heads] f32, the natural log of the sum of exponentials of scale·q·k over those keys;
// −inf where no key was seen (then out = 0). Merging is commutative and associative with identity
// (0, −inf); a merge of disjoint key sets equals attention over their union.
// A row has no answer where a score of a key that it sees, or a sum on the way to one, passes f32's
// range: then its lse is NaN, never −inf, and its out means nothing. Neither has it one where two
// sides of a merge both count and |lse| is too large for f32 to weigh them by (merge_limit.h). A
// row that sums up values beyond f32's range has an out that is not finite. Merging keeps both,
// whatever the other side saw, so that every split of the keys ends alike, and Finalise refuses
// them. Values; a view is written by one thread at a time.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "annulus/tensor.h"

namespace annulus {

// A writable, contiguous partial that somebody else owns.
struct PartialView {
  float* out = nullptr;  // [rows, heads, v_head_dim]
  float* lse = nullptr;  // [rows, heads], natural log
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t v_head_dim = 0;

  PartialView Rows(int64_t first, int64_t count) const {
    return {out + first * heads * v_head_dim, lse + first * heads, count, heads, v_head_dim};
  }
};

// An owned partial. Starts as the identity.
class Partial {
 public:
  Partial() = default;
  Partial(int64_t rows, int64_t heads, int64_t v_head_dim);

  PartialView view();
  const Tensor& out() const { return out_; }  // f32 [rows, heads, v_head_dim]
  const Tensor& lse() const { return lse_; }  // f32 [rows, heads, 1]
  Tensor TakeOut() && { return std::move(out_); }
  Tensor TakeLse() && { return std::move(lse_); }

 private:
  Tensor out_;
  Tensor lse_;
};

// Sets every row to the identity: out 0, lse −inf.
void SetIdentity(PartialView partial);

// into := into ⊕ from, row by row. Shapes must be equal. The key sets must be disjoint: a key
// counted twice cannot be seen from here.
void Merge(PartialView into, PartialView from);

// Merges a partial of the heads [head_first, head_first + from.heads) of `into`, all rows.
void MergeHeads(PartialView into, int64_t head_first, PartialView from);

// A row without an answer.
struct Overflow {
  int64_t row = 0;
  int64_t head = 0;
  bool of_score = false;  // else of values

  friend bool operator==(const Overflow&, const Overflow&) = default;
};

// The first row without an answer.
std::optional<Overflow> FindOverflow(PartialView partial);
// INVALID_ARGUMENT that names it; `row` counts the rows of q, `head` its heads.
absl::Status OverflowError(const Overflow& overflow);

// The once-only end of rows, by their owner after the last merge: a row that saw nothing gives
// out 0 and lse −inf, whatever its accumulator holds. Then as FindOverflow; where that finds one,
// the caller must not answer.
std::optional<Overflow> EndRows(PartialView partial);
// The same for a partial whose rows and heads are those of q.
absl::Status Finalise(PartialView partial);

}  // namespace annulus
