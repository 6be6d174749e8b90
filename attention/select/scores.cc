#include "attention/select/scores.h"

#include <cmath>
#include <limits>

#include "attention/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/select/scores.cc"
#include "hwy/foreach_target.h"  // includes this file once per instruction set

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace annulus::select::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kSums = 8;
using D = hn::CappedTag<double, kSums>;
constexpr size_t kLanes = hn::MaxLanes(D());
constexpr size_t kVectors = kSums / kLanes;

// A vector's lanes by halves: 0 + 4, …, then (0 + 4) + (2 + 6), …, then the two.
template <class Tag>
double FoldLanes(Tag tag, hn::Vec<Tag> lanes) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (hn::MaxLanes(Tag()) > 1) {
    const hn::Half<Tag> half;
    return FoldLanes(half, hn::Add(hn::LowerHalf(half, lanes), hn::UpperHalf(half, lanes)));
  }
#endif
  return hn::GetLane(lanes);
}

// The same order at any width of vectors.
float Total(hn::Vec<D>* sums) {
  for (size_t half = kVectors / 2; half > 0; half /= 2) {
    for (size_t v = 0; v < half; ++v) sums[v] = hn::Add(sums[v], sums[v + half]);
  }
  const double total = FoldLanes(D(), sums[0]);
  return std::isnan(total) ? std::numeric_limits<float>::infinity() : static_cast<float>(total);
}

template <int kRows>
void ScoreRows(const double* HWY_RESTRICT rows, int width, const float* HWY_RESTRICT summary,
               float* HWY_RESTRICT scores) {
  const D d;
  const hn::Rebind<float, D> df;
  hn::Vec<D> sums[kRows][kVectors];
#pragma GCC unroll 8
  for (auto& of_row : sums) {
#pragma GCC unroll 8
    for (auto& sum : of_row) sum = hn::Zero(d);
  }
  const auto size = static_cast<size_t>(width);
  for (size_t c = 0; c < size; c += kSums) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      const auto x = hn::PromoteTo(d, hn::LoadU(df, summary + c + v * kLanes));
#pragma GCC unroll 8
      for (size_t r = 0; r < kRows; ++r) {
        sums[r][v] = hn::MulAdd(hn::LoadU(d, rows + r * size + c + v * kLanes), x, sums[r][v]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) scores[r] = Total(sums[r]);
}

void Scores(const double* rows, int count, int width, const float* summary, float* scores) {
  int r = 0;
  for (; r + 4 <= count; r += 4) ScoreRows<4>(rows + r * width, width, summary, scores + r);
  for (; r < count; ++r) ScoreRows<1>(rows + r * width, width, summary, scores + r);
}

}  // namespace annulus::select::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace annulus {
namespace select {
HWY_EXPORT(Scores);
}  // namespace select

void Scores(const double* rows, int count, int width, const float* summary, float* scores) {
  HWY_DYNAMIC_DISPATCH(select::Scores)(rows, count, width, summary, scores);
}

}  // namespace annulus
#endif
