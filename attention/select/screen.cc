#include "attention/select/screen.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "attention/cpu/fetch_line.h"
#include "attention/cpu/simd_targets.h"
#include "attention/select/screen_bf16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/select/screen.cc"
#include "hwy/foreach_target.h"  // includes this file once per instruction set

#include "hwy/highway.h"

#ifndef ANNULUS_SELECT_SCREEN_ONCE
#define ANNULUS_SELECT_SCREEN_ONCE
namespace annulus::select {
constexpr size_t kPad = 16;  // f32 of the widest vector
constexpr auto kTokens = static_cast<size_t>(kBlockTokens);
}  // namespace annulus::select
#endif

HWY_BEFORE_NAMESPACE();
namespace annulus::select::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, kPad>;
constexpr size_t kLanes = hn::MaxLanes(D());
// Sums that registers hold beside what they are made of.
constexpr size_t kSums = kLanes == kPad || HWY_ARCH_ARM_A64 ? 16 : 8;

// Queries in lanes, so that nothing is added across them: some vectors of queries with some tokens.
template <size_t kVectors>
void LookVectors(const float* HWY_RESTRICT q, size_t padded, size_t dim,
                 const float* HWY_RESTRICT weights, bool first, const float* HWY_RESTRICT k,
                 size_t tokens, float* HWY_RESTRICT to) {
  constexpr size_t kAtOnce = kSums / kVectors;
  static_assert(kTokens % kAtOnce == 0);
  const D d;
  for (size_t t = 0; t < tokens; t += kAtOnce, k += kAtOnce * dim) {
    hn::Vec<D> sums[kAtOnce][kVectors];
#pragma GCC unroll 16
    for (auto& of_token : sums) {
#pragma GCC unroll 4
      for (auto& sum : of_token) sum = hn::Zero(d);
    }
    const float* HWY_RESTRICT at = q;
    for (size_t c = 0; c < dim; ++c, at += padded) {
      hn::Vec<D> of[kVectors];
#pragma GCC unroll 4
      for (size_t v = 0; v < kVectors; ++v) of[v] = hn::LoadU(d, at + v * kLanes);
#pragma GCC unroll 16
      for (size_t i = 0; i < kAtOnce; ++i) {
        const auto x = hn::Set(d, k[i * dim + c]);
#pragma GCC unroll 4
        for (size_t v = 0; v < kVectors; ++v) sums[i][v] = hn::MulAdd(of[v], x, sums[i][v]);
      }
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < kAtOnce; ++i) {
      if (weights == nullptr) {
#pragma GCC unroll 4
        for (size_t v = 0; v < kVectors; ++v) {
          hn::StoreU(sums[i][v], d, to + (t + i) * padded + v * kLanes);
        }
        continue;
      }
      float* const lanes = to + (t + i) * kLanes;
      auto weighed = first ? hn::Zero(d) : hn::LoadU(d, lanes);
#pragma GCC unroll 4
      for (size_t v = 0; v < kVectors; ++v) {
        const auto weight = hn::LoadU(d, weights + v * kLanes);
        weighed = hn::MulAdd(weight, hn::Max(sums[i][v], hn::Zero(d)), weighed);
      }
      hn::StoreU(weighed, d, lanes);
    }
  }
}

// scores [tokens, padded]; of queries that are weighed [tokens].
void Look(const float* q, size_t padded, size_t dim, const float* weights, const float* k,
          size_t tokens, float* scores) {
  for (size_t at = 0; at < padded;) {
    const auto look = [&](auto vectors) {
      constexpr size_t kVectors = decltype(vectors)::value;
      LookVectors<kVectors>(q + at, padded, dim, weights == nullptr ? nullptr : weights + at,
                            at == 0, k, tokens, weights == nullptr ? scores + at : scores);
      at += kVectors * kLanes;
    };
    const size_t vectors = (padded - at) / kLanes;
    if (kSums == 16 && vectors >= 4) {
      look(std::integral_constant<size_t, 4>());
    } else if (vectors >= 2) {
      look(std::integral_constant<size_t, 2>());
    } else {
      look(std::integral_constant<size_t, 1>());
    }
  }
  if (weights == nullptr) return;
  const D d;
  for (size_t t = 0; t < tokens; ++t) {  // no token's lanes are written over before they are read
    scores[t] = hn::GetLane(hn::SumOfLanes(d, hn::LoadU(d, scores + t * kLanes)));
  }
}

// Along the dims of a token, which are a multiple of 8.
using ByDims = hn::CappedTag<float, 8>;

// `largest` so far; a NaN is larger than ∞.
void AddLargest(const float* HWY_RESTRICT k, size_t dim, float* HWY_RESTRICT largest) {
  const ByDims d;
  const hn::RebindToSigned<ByDims> di;
  for (size_t c = 0; c < dim; c += hn::MaxLanes(d)) {
    const auto size = hn::BitCast(di, hn::Abs(hn::LoadU(d, k + c)));
    const auto top = hn::Max(size, hn::BitCast(di, hn::LoadU(d, largest + c)));
    hn::StoreU(hn::BitCast(d, top), d, largest + c);
  }
}

void Widen(const uint16_t* HWY_RESTRICT bf16, size_t dim, float* HWY_RESTRICT to) {
  const ByDims d;
  const hn::RebindToUnsigned<ByDims> du;
  const hn::Rebind<uint16_t, ByDims> dh;
  for (size_t c = 0; c < dim; c += hn::MaxLanes(d)) {
    const auto wide = hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(dh, bf16 + c)));
    hn::StoreU(hn::BitCast(d, wide), d, to + c);
  }
}

void TakeRow(const std::byte* row, DType dtype, size_t dim, float* k, float* largest) {
  if (dtype == DType::kBF16) {
    Widen(reinterpret_cast<const uint16_t*>(row), dim, k);
  } else {
    Convert(row, dtype, k, DType::kF32, static_cast<int64_t>(dim));
  }
  AddLargest(k, dim, largest);
}

void TakeRows(const KeyRows& rows, const KeyRows& next, size_t dim, float* HWY_RESTRICT k,
              float* HWY_RESTRICT largest) {
  std::fill(largest, largest + dim, 0.0f);
  const size_t bytes = dim * SizeOf(rows.dtype);
  for (int t = 0; t < rows.count; ++t) {
    if (t < next.count) cpu::RowToL2(next.Row(t), bytes);
    TakeRow(rows.Row(t), rows.dtype, dim, k + static_cast<size_t>(t) * dim, largest);
  }
}

float Size(const float* HWY_RESTRICT sizes, const float* HWY_RESTRICT largest, size_t dim) {
  const ByDims d;
  auto sum = hn::Zero(d);
  for (size_t c = 0; c < dim; c += hn::MaxLanes(d)) {
    sum = hn::MulAdd(hn::LoadU(d, sizes + c), hn::LoadU(d, largest + c), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

void HighestOf(const float* HWY_RESTRICT scores, size_t tokens, size_t stride,
               float* HWY_RESTRICT to) {
  const D d;
  if (stride == 1) {
    float top = scores[0];
    size_t t = 1;
    if (tokens >= kLanes) {
      auto tops = hn::LoadU(d, scores);
      for (t = kLanes; t + kLanes <= tokens; t += kLanes) {
        tops = hn::Max(tops, hn::LoadU(d, scores + t));
      }
      top = hn::GetLane(hn::MaxOfLanes(d, tops));
    }
    for (; t < tokens; ++t) top = std::max(top, scores[t]);
    *to = top;
    return;
  }
  for (size_t at = 0; at < stride; at += kLanes) {
    auto top = hn::LoadU(d, scores + at);
    for (size_t t = 1; t < tokens; ++t) top = hn::Max(top, hn::LoadU(d, scores + t * stride + at));
    hn::StoreU(top, d, to + at);
  }
}

}  // namespace annulus::select::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace annulus {
namespace select {
HWY_EXPORT(Look);
HWY_EXPORT(TakeRows);
HWY_EXPORT(Size);
HWY_EXPORT(HighestOf);
}  // namespace select

ScreenQueries::ScreenQueries(absl::Span<const double> q, int dim, const float* weights)
    : heads_(static_cast<int>(q.size()) / dim),
      dim_(dim),
      padded_((static_cast<size_t>(heads_) + select::kPad - 1) / select::kPad * select::kPad),
      q_(static_cast<size_t>(dim) * padded_) {
  if (weights != nullptr) {
    weights_.assign(weights, weights + heads_);
    weights_.resize(padded_);
  }
  std::vector<double> sizes(static_cast<size_t>(lists() * dim));
  std::vector<double> of_weights(static_cast<size_t>(lists()), weights == nullptr ? 1 : 0);
  for (int j = 0; j < heads_; ++j) {
    const auto list = static_cast<size_t>(weights == nullptr ? j : 0);
    const double weight = weights == nullptr ? 1 : std::fabs(double{weights[j]});
    if (weights != nullptr) of_weights[0] += weight;
    for (int c = 0; c < dim; ++c) {
      const double x = q[static_cast<size_t>(j * dim + c)];
      q_[static_cast<size_t>(c) * padded_ + static_cast<size_t>(j)] = static_cast<float>(x);
      sizes[list * static_cast<size_t>(dim) + static_cast<size_t>(c)] += weight * std::fabs(x);
      largest_ = std::max(largest_, std::fabs(x));
    }
  }
  PackPairs(q);
  sizes_.assign(sizes.begin(), sizes.end());
  for (size_t list = 0; list < of_weights.size(); ++list) {
    double all = 0;
    for (int c = 0; c < dim; ++c) all += sizes[list * static_cast<size_t>(dim) + c];
    const double w = of_weights[list] + 1;
    lost_.push_back(static_cast<float>(0x1p-120 * (all + w * (dim + heads_))));
    lost_.push_back(static_cast<float>(0x1p-120 * w * dim));
  }
}

void ScreenQueries::PackPairs(absl::Span<const double> q) {
  if (!select::LooksByPairs()) return;
  const size_t lanes = select::LanesOfHead(static_cast<size_t>(heads_));
  pairs_.resize(static_cast<size_t>(dim_) / 2 / lanes * padded_);
  for (size_t i = 0; i < q.size(); ++i) {
    const auto c = i % static_cast<size_t>(dim_), j = i / static_cast<size_t>(dim_);
    const uint16_t half = F32ToBF16(static_cast<float>(q[i]));
    if (BF16ToF32(half) != q[i]) return pairs_.clear();
    uint32_t& lane = pairs_[c / 2 / lanes * padded_ + j * lanes + c / 2 % lanes];
    lane |= uint32_t{half} << (c % 2 == 0 ? 0 : 16);
  }
}

void ScreenQueries::Look(const ScreenBlock& block, int tokens, float* scores, float* errors) const {
  const auto dim = static_cast<size_t>(dim_);
  const float* const weights = weights_.empty() ? nullptr : weights_.data();
  if (block.by_pairs()) {
    select::LookPairs(pairs_.data(), static_cast<size_t>(heads_), dim, weights, block.rows(),
                      block.next(), static_cast<size_t>(tokens), scores);
  } else {
    HWY_DYNAMIC_DISPATCH(select::Look)
    (q_.data(), padded_, dim, weights, block.k(), static_cast<size_t>(tokens), scores);
  }
  constexpr float kUnknown = std::numeric_limits<float>::infinity();
  const bool fits = largest_ * double{block.max()} * dim_ < 0x1p126;
  const int terms = dim_ + (weights_.empty() ? 0 : heads_) + 16;
  for (int list = 0; list < lists(); ++list) {
    // A NaN of the block or of a weight makes it one.
    const float size = HWY_DYNAMIC_DISPATCH(select::Size)(
        sizes_.data() + static_cast<size_t>(list) * dim, block.largest(), dim);
    const float* const lost = lost_.data() + 2 * list;
    const float error =
        0x1p-23f * static_cast<float>(terms) * size + lost[0] + lost[1] * block.max();
    errors[list] = fits && size < 0x1p126f && error < kUnknown ? error : kUnknown;
  }
}

ScreenBlock::ScreenBlock(int dim, bool by_pairs)
    : dim_(static_cast<size_t>(dim)),
      by_pairs_(by_pairs),
      k_(by_pairs ? 0 : static_cast<size_t>(kBlockTokens) * dim_),
      largest_(dim_) {}

void ScreenBlock::Take(const KeyRows& rows, const KeyRows& next) {
  rows_ = rows;
  next_ = next;
  if (by_pairs_) {
    select::LargestOfPairs(rows, dim_, largest_.data());
  } else {
    HWY_DYNAMIC_DISPATCH(select::TakeRows)(rows, next, dim_, k_.data(), largest_.data());
  }
  // If one of them is a NaN, that is seen elsewhere.
  max_ = *std::max_element(largest_.begin(), largest_.end());
}

void HighestOf(const float* scores, int tokens, size_t stride, float* to) {
  HWY_DYNAMIC_DISPATCH(select::HighestOf)(scores, static_cast<size_t>(tokens), stride, to);
}

void Floor::Raise(absl::Span<const float> lower_bounds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const float bound : lower_bounds) {
    if (bound > value()) best_.push_back(bound);
  }
  if (best_.size() < picks_) return;
  const auto last = best_.begin() + static_cast<int64_t>(picks_) - 1;
  std::nth_element(best_.begin(), last, best_.end(), std::greater<>());
  value_.store(*last, std::memory_order_relaxed);
  best_.resize(picks_);
}

}  // namespace annulus
#endif
