#include "attention/select/scores.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/cpu/fetch_line.h"
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

#if HWY_TARGET != HWY_SCALAR
// Of four rows with each of two summaries; to[s·stride + r]. The order of Total(), eight at a time.
template <class Tag>
void TotalsOfFour(Tag d, const hn::Vec<Tag>* first, const hn::Vec<Tag>* second, float* to,
                  int stride) {
  // Lanes 0 and 1: of row 0; 2 and 3: of row 1; and so on.
  const auto halves = [d](const hn::Vec<Tag>* rows) HWY_ATTR {
    const auto fold = [d](hn::Vec<Tag> a, hn::Vec<Tag> b) HWY_ATTR {
      return hn::Add(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
    };
    const auto even = fold(rows[0], rows[2]), odd = fold(rows[1], rows[3]);
    return hn::Add(hn::OddEvenBlocks(hn::SwapAdjacentBlocks(odd), even),
                   hn::OddEvenBlocks(odd, hn::SwapAdjacentBlocks(even)));
  };
  const auto a = halves(first), b = halves(second);
  auto totals = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  totals = hn::IfThenElse(hn::IsNaN(totals), hn::Inf(d), totals);
  const hn::Rebind<float, Tag> df;
  const hn::Half<decltype(df)> half;
  const auto narrow = hn::DemoteTo(df, totals);
  hn::StoreU(hn::LowerHalf(half, hn::ConcatEven(df, narrow, narrow)), half, to);
  hn::StoreU(hn::LowerHalf(half, hn::ConcatOdd(df, narrow, narrow)), half, to + stride);
}
#endif

// Memory is asked for the summaries that come so many later: pages lie apart, where nothing else
// reads ahead.
constexpr size_t kAhead = 8;
constexpr size_t kLineFloats = cpu::kLineBytes / sizeof(float);

// Several rows with several summaries, whose sums stay in registers. Where `ahead` is given, the
// summaries there are fetched meanwhile.
template <int kRows, int kSummaries, bool kFetch>
void ScoreTile(const double* HWY_RESTRICT rows, size_t size, const float* const* summaries,
               const float* const* ahead, float* HWY_RESTRICT scores, int scores_stride) {
  const D d;
  const hn::Rebind<float, D> df;
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
    if (kFetch && c % kLineFloats == 0) {
#pragma GCC unroll 8
      for (size_t s = 0; s < kSummaries; ++s) cpu::LineToL1(ahead[s] + c);
    }
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = c + v * kLanes;
      hn::Vec<D> row[kRows];
#pragma GCC unroll 8
      for (size_t r = 0; r < kRows; ++r) row[r] = hn::LoadU(d, rows + r * size + at);
#pragma GCC unroll 8
      for (size_t s = 0; s < kSummaries; ++s) {
        const auto x = hn::PromoteTo(d, hn::LoadU(df, summaries[s] + at));
#pragma GCC unroll 8
        for (size_t r = 0; r < kRows; ++r) sums[s][r][v] = hn::MulAdd(row[r], x, sums[s][r][v]);
      }
    }
  }
#if HWY_TARGET != HWY_SCALAR
  if constexpr (kLanes == kSums && kRows == 4 && kSummaries % 2 == 0) {
#pragma GCC unroll 8
    for (int s = 0; s < kSummaries; s += 2) {
      TotalsOfFour(d, sums[s][0], sums[s + 1][0], scores + s * scores_stride, scores_stride);
    }
    return;
  }
#endif
  for (int s = 0; s < kSummaries; ++s) {
    for (int r = 0; r < kRows; ++r) scores[s * scores_stride + r] = Total(sums[s][r]);
  }
}

// All rows with several summaries; scores [kSummaries, row_count].
template <int kSummaries>
void ScoreSummaries(const double* rows, int row_count, int width, const float* const* summaries,
                    const float* const* ahead, float* scores) {
  const auto size = static_cast<size_t>(width);
  for (int r = 0; r < row_count;) {
    const double* const of = rows + static_cast<size_t>(r) * size;
    float* const to = scores + r;
    if (row_count - r >= 4) {
      r == 0 ? ScoreTile<4, kSummaries, true>(of, size, summaries, ahead, to, row_count)
             : ScoreTile<4, kSummaries, false>(of, size, summaries, ahead, to, row_count);
      r += 4;
    } else {
      r == 0 ? ScoreTile<1, kSummaries, true>(of, size, summaries, ahead, to, row_count)
             : ScoreTile<1, kSummaries, false>(of, size, summaries, ahead, to, row_count);
      ++r;
    }
  }
}

void Scores(const double* rows, int row_count, int width, absl::Span<const float* const> summaries,
            float* scores) {
  // As many sums as registers hold, whatever their width.
  constexpr size_t kTile = kVectors == 1 ? 4 : 2;
  const size_t count = summaries.size();
  for (size_t s = 0; s < count;) {
    const bool several = s + kTile <= count;
    const size_t taken = several ? kTile : 1;
    const float* const* const from = summaries.data() + s;
    const float* const* const ahead = from + std::min(kAhead, count - s - taken);
    float* const to = scores + s * static_cast<size_t>(row_count);
    several ? ScoreSummaries<kTile>(rows, row_count, width, from, ahead, to)
            : ScoreSummaries<1>(rows, row_count, width, from, ahead, to);
    s += taken;
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

std::vector<const float*> PlacesOf(const float* summaries, int64_t count, int width) {
  std::vector<const float*> places(static_cast<size_t>(count));
  for (const float*& place : places) {
    place = summaries;
    summaries += width;
  }
  return places;
}

void Scores(const double* rows, int row_count, int width, absl::Span<const float* const> summaries,
            float* scores) {
  HWY_DYNAMIC_DISPATCH(select::Scores)(rows, row_count, width, summaries, scores);
}

void WeighedScores(const float* dots, int token_count, const float* weights, int dot_count,
                   float* scores) {
  HWY_DYNAMIC_DISPATCH(select::WeighedScores)(dots, token_count, weights, dot_count, scores);
}

}  // namespace annulus
#endif
