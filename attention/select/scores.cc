#include "attention/select/scores.h"

#include <algorithm>
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

// Several rows with several summaries, whose sums stay in registers.
template <int kRows, int kSummaries>
void ScoreTile(const double* HWY_RESTRICT rows, int width, const float* HWY_RESTRICT summaries,
               float* HWY_RESTRICT scores, int scores_stride) {
  const D d;
  const hn::Rebind<float, D> df;
  const auto size = static_cast<size_t>(width);
  hn::Vec<D> sums[kSummaries][kRows][kVectors];
#pragma GCC unroll 8
  for (auto& of_summary : sums) {
#pragma GCC unroll 8
    for (auto& of_row : of_summary) {
#pragma GCC unroll 8
      for (auto& sum : of_row) sum = hn::Zero(d);
    }
  }
  for (size_t c = 0; c < size; c += kSums) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = c + v * kLanes;
      hn::Vec<D> row[kRows];
#pragma GCC unroll 8
      for (size_t r = 0; r < kRows; ++r) row[r] = hn::LoadU(d, rows + r * size + at);
#pragma GCC unroll 8
      for (size_t s = 0; s < kSummaries; ++s) {
        const auto x = hn::PromoteTo(d, hn::LoadU(df, summaries + s * size + at));
#pragma GCC unroll 8
        for (size_t r = 0; r < kRows; ++r) sums[s][r][v] = hn::MulAdd(row[r], x, sums[s][r][v]);
      }
    }
  }
  for (int s = 0; s < kSummaries; ++s) {
    for (int r = 0; r < kRows; ++r) scores[s * scores_stride + r] = Total(sums[s][r]);
  }
}

void Scores(const double* rows, int row_count, int width, const float* summaries, int summary_count,
            float* scores) {
  // As many sums as registers hold, whatever their width.
  constexpr int kTile = kVectors == 1 ? 4 : 2;
  for (int s = 0; s < summary_count;) {
    const bool several = s + kTile <= summary_count;
    const float* const from = summaries + s * width;
    float* const to = scores + s * row_count;
    int r = 0;
    for (; r + 4 <= row_count; r += 4) {
      several ? ScoreTile<4, kTile>(rows + r * width, width, from, to + r, row_count)
              : ScoreTile<4, 1>(rows + r * width, width, from, to + r, row_count);
    }
    for (; r < row_count; ++r) {
      several ? ScoreTile<1, kTile>(rows + r * width, width, from, to + r, row_count)
              : ScoreTile<1, 1>(rows + r * width, width, from, to + r, row_count);
    }
    s += several ? kTile : 1;
  }
}

// Eight of them.
void AddWeighed(const float* HWY_RESTRICT dots, const float* HWY_RESTRICT weights,
                hn::Vec<D>* sums) {
  const D d;
  const hn::Rebind<float, D> df;
  for (size_t v = 0; v < kVectors; ++v) {
    const auto dot = hn::Max(hn::LoadU(df, dots + v * kLanes), hn::Zero(df));
    const auto weight = hn::LoadU(df, weights + v * kLanes);
    sums[v] = hn::MulAdd(hn::PromoteTo(d, weight), hn::PromoteTo(d, dot), sums[v]);
  }
}

void WeighedScores(const float* dots, int token_count, const float* weights, int dot_count,
                   float* scores) {
  const D d;
  const auto count = static_cast<size_t>(dot_count), whole = count / kSums * kSums;
  float last_dots[kSums] = {}, last_weights[kSums] = {};
  std::copy(weights + whole, weights + count, last_weights);
  for (int t = 0; t < token_count; ++t, dots += count) {
    hn::Vec<D> sums[kVectors];
    for (auto& sum : sums) sum = hn::Zero(d);
    for (size_t j = 0; j < whole; j += kSums) AddWeighed(dots + j, weights + j, sums);
    if (whole < count) {
      std::copy(dots + whole, dots + count, last_dots);
      AddWeighed(last_dots, last_weights, sums);
    }
    scores[t] = Total(sums);
  }
}

}  // namespace annulus::select::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace annulus {
namespace select {
HWY_EXPORT(Scores);
HWY_EXPORT(WeighedScores);
}  // namespace select

void Scores(const double* rows, int row_count, int width, const float* summaries, int summary_count,
            float* scores) {
  HWY_DYNAMIC_DISPATCH(select::Scores)(rows, row_count, width, summaries, summary_count, scores);
}

void WeighedScores(const float* dots, int token_count, const float* weights, int dot_count,
                   float* scores) {
  HWY_DYNAMIC_DISPATCH(select::WeighedScores)(dots, token_count, weights, dot_count, scores);
}

}  // namespace annulus
#endif
