// The kernel for many query rows. Rows are packed into panels of two vectors: lane = row. Keys and
// values are read as scalars, broadcast, as they lie in their rows; a panel of queries and its
// scores [key][lane] stay in L1. Included once per instruction set; see kernels.cc.
#if defined(ANNULUS_CPU_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ANNULUS_CPU_PANEL_INL_H_
#undef ANNULUS_CPU_PANEL_INL_H_
#else
#define ANNULUS_CPU_PANEL_INL_H_
#endif

#include <algorithm>
#include <limits>
#include <type_traits>

#include "attention/cpu/fetch.h"
#include "attention/cpu/kernels.h"
#include "attention/cpu/panel_layout.h"
#include "attention/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace annulus::cpu::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
using DU = hn::RebindToUnsigned<DF>;

inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));
// A micro-kernel holds kScalars × kPanelVectors sums in registers, beside the vectors it loads.
inline constexpr int kScalars = kLanes == 16 ? 8 : 6;

// A cut of [0, count) into pieces of kScalars and of 4, the first as many as leave a multiple of 4,
// and single ones where no such cut is possible.
class Pieces {
 public:
  explicit Pieces(int count) : count_(count), large_end_(count / kScalars * kScalars) {
    while (large_end_ > 0 && (count - large_end_) % 4 != 0) large_end_ -= kScalars;
  }

  // body(std::integral_constant<int, size of the piece>, its begin) for each.
  template <class Body>
  HWY_INLINE void ForEach(const Body& body) const {
    int at = 0;
    for (; at < large_end_; at += kScalars) body(std::integral_constant<int, kScalars>(), at);
    for (; at + 4 <= count_; at += 4) body(std::integral_constant<int, 4>(), at);
    for (; at < count_; ++at) body(std::integral_constant<int, 1>(), at);
  }

 private:
  int count_;
  int large_end_;
};

// scores[m][lane] = Σ_c k[m][c] · q[c][lane] for kRows keys.
template <int kCols, int kRows>
HWY_INLINE void ScoreRows(const float* HWY_RESTRICT q, const float* HWY_RESTRICT k, size_t dim,
                          float* HWY_RESTRICT scores) {
  const DF d;
  VF sum[kRows][kCols];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) sum[m][n] = hn::Zero(d);
  }
  for (size_t c = 0; c < dim; ++c) {
    VF lanes[kCols];
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) lanes[n] = hn::Load(d, q + (c * kCols + n) * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const VF scalar = hn::Set(d, k[m * dim + c]);
#pragma GCC unroll 8
      for (int n = 0; n < kCols; ++n) sum[m][n] = hn::MulAdd(scalar, lanes[n], sum[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) {
      hn::Store(sum[m][n], d, scores + (m * kCols + n) * kLanes);
    }
  }
}

// out[m][lane] = out[m][lane] · shrink[lane] + Σ_key v[key][m] · p[key][lane] for kRows dims, v
// packed by PackValues. The
// block's sum is made apart and added once: over a million keys one chain of additions would lose
// what 64-key sums keep.
template <int kCols, int kRows>
HWY_INLINE void AddValues(const float* HWY_RESTRICT p, const float* HWY_RESTRICT v, int keys,
                          const VF* shrink, float* HWY_RESTRICT out) {
  const DF d;
  VF sum[kRows][kCols];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) sum[m][n] = hn::Zero(d);
  }
  for (int key = 0; key < keys; ++key) {
    VF lanes[kCols];
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) lanes[n] = hn::Load(d, p + (key * kCols + n) * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const VF scalar = hn::Set(d, v[key * kRows + m]);
#pragma GCC unroll 8
      for (int n = 0; n < kCols; ++n) sum[m][n] = hn::MulAdd(scalar, lanes[n], sum[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) {
      float* HWY_RESTRICT at = out + (m * kCols + n) * kLanes;
      hn::Store(hn::MulAdd(hn::Load(d, at), shrink[n], sum[m][n]), d, at);
    }
  }
}

// Scores that the pattern does not allow become −∞; of the others each that is not finite makes the
// row's sum NaN. Row r of the panel is the tile's row first + r, of token (first + r) / heads.
template <int kCols>
HWY_INLINE void MaskScores(const TileShape& shape, int first, const KeyBlock& block,
                           float* HWY_RESTRICT scores, float* HWY_RESTRICT sum) {
  const DF d;
  const DU du;
  HWY_ALIGN uint32_t words[2][kCols * kLanes];
  for (int r = 0; r < kCols * kLanes; ++r) {
    const int token = std::min((first + r) / shape.heads, shape.tokens - 1);
    words[0][r] = static_cast<uint32_t>(block.masks[token]);
    words[1][r] = static_cast<uint32_t>(block.masks[token] >> 32);
  }
  const VF hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int n = 0; n < kCols; ++n) {
    VF not_finite = hn::Load(d, sum + n * kLanes);
    for (int key = 0; key < block.keys; ++key) {
      float* HWY_RESTRICT at = scores + (key * kCols + n) * kLanes;
      const auto bit = hn::Set(du, 1u << (key % 32));
      const auto seen =
          hn::RebindMask(d, hn::TestBit(hn::Load(du, words[key / 32] + n * kLanes), bit));
      const VF score = hn::Load(d, at);
      not_finite = hn::MulAdd(hn::IfThenElseZero(seen, score), hn::Zero(d), not_finite);
      hn::Store(hn::IfThenElse(seen, score, hidden), d, at);
    }
    hn::Store(not_finite, d, sum + n * kLanes);
  }
}

// Turns scores into 2^(score − max) in place, updates the running max and sum, and gives the
// factor by which what was accumulated so far shrinks. Where no score was masked, one that is not
// finite makes the sum NaN.
template <int kCols, bool kMasked>
HWY_INLINE void SoftmaxStep(int keys, float* HWY_RESTRICT scores, float* HWY_RESTRICT max,
                            float* HWY_RESTRICT sum, VF* shrink) {
  const DF d;
  VF top[kCols];
  VF total[kCols];
  for (int n = 0; n < kCols; ++n) {
    top[n] = hn::Load(d, max + n * kLanes);
    total[n] = hn::Zero(d);
  }
  for (int key = 0; key < keys; ++key) {
#pragma GCC unroll 2
    for (int n = 0; n < kCols; ++n) {
      const VF score = hn::Load(d, scores + (key * kCols + n) * kLanes);
      top[n] = hn::Max(top[n], score);
      if (!kMasked) total[n] = hn::MulAdd(score, hn::Zero(d), total[n]);
    }
  }
  for (int key = 0; key < keys; ++key) {
#pragma GCC unroll 2
    for (int n = 0; n < kCols; ++n) {
      float* HWY_RESTRICT at = scores + (key * kCols + n) * kLanes;
      const VF p = Exp2(d, hn::Sub(hn::Load(d, at), top[n]));
      hn::Store(p, d, at);
      total[n] = hn::Add(total[n], p);
    }
  }
  for (int n = 0; n < kCols; ++n) {
    shrink[n] = Exp2(d, hn::Sub(hn::Load(d, max + n * kLanes), top[n]));
    hn::Store(top[n], d, max + n * kLanes);
    hn::Store(hn::MulAdd(hn::Load(d, sum + n * kLanes), shrink[n], total[n]), d, sum + n * kLanes);
  }
}

// One panel against one block of f32 keys [keys, head_dim] and packed values.
template <int kCols>
HWY_NOINLINE void AttendPanel(const TileShape& shape, const TileMemory& tile, int first,
                              const KeyBlock& block, const float* k, const float* v,
                              const BlockFetcher& next) {
  constexpr int kWidth = kCols * kLanes;
  const size_t dim = static_cast<size_t>(shape.head_dim);
  const int v_dim = shape.v_head_dim;
  const float* q = tile.q + static_cast<size_t>(first) * dim;
  float* out = tile.out + static_cast<size_t>(first) * static_cast<size_t>(v_dim);
  float* scores = tile.scores;
  Pieces(block.keys).ForEach([&](auto rows, int key) {
    next.Keys(key, key + rows());
    ScoreRows<kCols, rows()>(q, k + key * dim, dim, scores + key * kWidth);
  });
  VF shrink[kCols];
  if (block.masks != nullptr) {
    MaskScores<kCols>(shape, first, block, scores, tile.sum + first);
    SoftmaxStep<kCols, true>(block.keys, scores, tile.max + first, tile.sum + first, shrink);
  } else {
    SoftmaxStep<kCols, false>(block.keys, scores, tile.max + first, tile.sum + first, shrink);
  }
  Pieces(v_dim).ForEach([&](auto rows, int c) {
    next.Values(c * 64 / v_dim, (c + rows()) * 64 / v_dim);
    AddValues<kCols, rows()>(scores, v + PackedAt(c, block.keys), block.keys, shrink,
                             out + c * kWidth);
  });
}

template <class T>
HWY_INLINE void WidenRows(const T* HWY_RESTRICT from, size_t stride, int rows, size_t dim,
                          float* HWY_RESTRICT to) {
  const hn::CappedTag<float, 8> d8;
  for (int r = 0; r < rows; ++r, from += stride, to += dim) {
    for (size_t c = 0; c < dim; c += hn::Lanes(d8)) hn::StoreU(LoadWide(d8, from + c), d8, to + c);
  }
}

// The values in the pieces that AddValues takes at a time, each [keys, piece] end to end: a column
// of pieces as they lie in memory would fight for few cache sets.
template <class T>
HWY_INLINE void PackValues(const T* HWY_RESTRICT from, size_t stride, int keys, int dim,
                           float* HWY_RESTRICT to) {
  const hn::CappedTag<float, 8> d8;
  constexpr int kStep = static_cast<int>(hn::MaxLanes(d8));
  const Pieces pieces(dim);
  for (int key = 0; key < keys; ++key, from += stride) {
    pieces.ForEach([&](auto piece, int c) {
      float* HWY_RESTRICT at = to + PackedAt(c, keys) + key * piece();
      // What is written beyond a row is overwritten by the next; nothing is read beyond one.
      int i = 0;
      for (; i < piece() && c + i + kStep <= dim; i += kStep) {
        hn::StoreU(LoadWide(d8, from + c + i), d8, at + i);
      }
      for (; i < piece(); ++i) at[i] = LoadOne(from + c + i);
    });
  }
}

template <class T>
HWY_INLINE void PanelBlock(const TileShape& shape, const TileMemory& tile, const KeyBlock& block,
                           const KeyBlock* next) {
  const auto dim = static_cast<size_t>(shape.head_dim);
  const float* k = reinterpret_cast<const float*>(block.k);
  // In place if they are f32 end to end: rows far apart would fight for few cache sets.
  if (!std::is_same_v<T, float> || block.k_row_stride != dim) {
    WidenRows(reinterpret_cast<const T*>(block.k), block.k_row_stride, block.keys, dim, tile.keys);
    k = tile.keys;
  }
  PackValues(reinterpret_cast<const T*>(block.v), block.v_row_stride, block.keys, shape.v_head_dim,
             tile.values);
  const int rows = shape.rows();
  constexpr int kPanelRows = kPanelVectors * kLanes;
  BlockFetcher fetcher(shape, next, (rows + kPanelRows - 1) / kPanelRows);
  for (int first = 0; first < rows; first += kPanelRows, fetcher.NextPanel()) {
    if (SeesNothing(shape, block, first, kLanes)) continue;
    if (PanelOf(first, rows, kLanes).vectors == 1) {
      AttendPanel<1>(shape, tile, first, block, k, tile.values, fetcher);
    } else {
      AttendPanel<kPanelVectors>(shape, tile, first, block, k, tile.values, fetcher);
    }
  }
}

TileFloats PanelFloatsOf(const TileShape& shape) {
  return PanelFloats(shape, kLanes, shape.head_dim, kBlockKeys);
}

void PanelAttend(const TileShape& shape, const TileMemory& tile, const KeyBlock& block,
                 const KeyBlock* next) {
  switch (shape.kv_dtype) {
    case DType::kF32:
      return PanelBlock<float>(shape, tile, block, next);
    case DType::kF16:
      return PanelBlock<hwy::float16_t>(shape, tile, block, next);
    case DType::kBF16:
      return PanelBlock<hwy::bfloat16_t>(shape, tile, block, next);
  }
}

void PanelSetQuery(const TileShape& shape, const TileMemory& tile, int row, const float* q) {
  const Panel panel = PanelOf(row, shape.rows(), kLanes);
  float* to = tile.q + static_cast<size_t>(panel.first) * static_cast<size_t>(shape.head_dim) +
              (row - panel.first);
  for (int c = 0; c < shape.head_dim; ++c) to[c * panel.vectors * kLanes] = q[c] * shape.scale;
}

void PanelGetOut(const TileShape& shape, const TileMemory& tile, float* out) {
  GetPanelOut(shape, tile, kLanes, out);
}

}  // namespace annulus::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
