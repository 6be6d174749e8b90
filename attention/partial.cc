#include "attention/partial.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "attention/merge_limit.h"
#include "base/check.h"

namespace annulus {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr float kNoAnswer = std::numeric_limits<float>::quiet_NaN();

// The lse of one row decides its weight. By arithmetic alone a NaN on either side reaches the
// result, and an infinite out stays infinite or becomes NaN.
void MergeRow(float* out, float* lse, const float* from_out, float from_lse, int64_t dim) {
  if (from_lse == kNothing) return;
  if (*lse == kNothing) {
    std::copy_n(from_out, dim, out);
    *lse = from_lse;
    return;
  }
  const float top = std::max(*lse, from_lse);
  const float weight = std::exp(*lse - top);
  const float from_weight = std::exp(from_lse - top);
  if (std::min(weight, from_weight) * std::abs(top) > kMergeLseMax) {
    *lse = kNoAnswer;
    return;
  }
  const float sum = weight + from_weight;
  const float keep = weight / sum;
  const float add = from_weight / sum;
  for (int64_t c = 0; c < dim; ++c) out[c] = keep * out[c] + add * from_out[c];
  *lse = top + std::log(sum);
}

}  // namespace

Partial::Partial(int64_t rows, int64_t heads, int64_t v_head_dim)
    : out_(DType::kF32, rows, heads, v_head_dim), lse_(DType::kF32, rows, heads, 1) {
  std::fill_n(lse_.f32(), rows * heads, kNothing);
}

PartialView Partial::view() {
  return {out_.f32(), lse_.f32(), out_.tokens(), out_.heads(), out_.dim()};
}

void SetIdentity(PartialView partial) {
  const int64_t rows = partial.rows * partial.heads;
  std::fill_n(partial.out, rows * partial.v_head_dim, 0.0f);
  std::fill_n(partial.lse, rows, kNothing);
}

void Merge(PartialView into, PartialView from) {
  ANNULUS_CHECK(into.rows == from.rows && into.heads == from.heads &&
                into.v_head_dim == from.v_head_dim);
  const int64_t dim = into.v_head_dim;
  for (int64_t r = 0; r < into.rows * into.heads; ++r) {
    MergeRow(into.out + r * dim, into.lse + r, from.out + r * dim, from.lse[r], dim);
  }
}

void MergeHeads(PartialView into, int64_t head_first, PartialView from) {
  if (from.heads == into.heads) return Merge(into, from);
  for (int64_t row = 0; row < from.rows; ++row) {
    const int64_t at = row * into.heads + head_first;
    Merge({into.out + at * into.v_head_dim, into.lse + at, 1, from.heads, into.v_head_dim},
          from.Rows(row, 1));
  }
}

std::optional<Overflow> FindOverflow(PartialView partial) {
  const int64_t dim = partial.v_head_dim;
  for (int64_t r = 0; r < partial.rows * partial.heads; ++r) {
    if (partial.lse[r] == kNothing) continue;
    const bool of_score = !std::isfinite(partial.lse[r]);
    if (!of_score && AllFinite(partial.out + r * dim, DType::kF32, dim)) continue;
    return Overflow{r / partial.heads, r % partial.heads, of_score};
  }
  return std::nullopt;
}

absl::Status OverflowError(const Overflow& overflow) {
  if (overflow.of_score) {
    return absl::InvalidArgumentError(
        absl::StrCat("q row ", overflow.row, ", head ", overflow.head,
                     ": a score passes f32's range; expected |scale·q·k|, and each sum on the way "
                     "to it, below 2.3e38, and below ",
                     kMergeLseMax, " where scores of several parts of the keys tie"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("v, as q row ", overflow.row, ", head ", overflow.head,
                   " sees it: a sum of values passes f32's range; expected sums below 3.4e38"));
}

std::optional<Overflow> EndRows(PartialView partial) {
  const int64_t dim = partial.v_head_dim;
  for (int64_t r = 0; r < partial.rows * partial.heads; ++r) {
    if (partial.lse[r] == kNothing) std::fill_n(partial.out + r * dim, dim, 0.0f);
  }
  return FindOverflow(partial);
}

absl::Status Finalise(PartialView partial) {
  const std::optional<Overflow> overflow = EndRows(partial);
  return overflow.has_value() ? OverflowError(*overflow) : absl::OkStatus();
}

}  // namespace annulus
