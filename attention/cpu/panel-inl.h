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

// Cuts [0, count) into pieces of kScalars and of 4, the first as many as leave a multiple of 4, and
// single ones where no such cut is possible: body(std::integral_constant<int, size>, begin).
template <class Body>
HWY_INLINE void InPieces(int count, const Body& body) {
  int large = count / kScalars;
  while (large > 0 && (count - large * kScalars) % 4 != 0) --large;
  int at = 0;
  for (; at < large * kScalars; at += kScalars) {
    body(std::integral_constant<int, kScalars>(), at);
  }
  for (; at + 4 <= count; at += 4) body(std::integral_constant<int, 4>(), at);
  for (; at < count; ++at) body(std::integral_constant<int, 1>(), at);
}

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

// out[m][lane] = out[m][lane] · shrink[lane] + Σ_key v[key][m] · p[key][lane] for kRows dims. The
// block's sum is made apart and added once: over a million keys one chain of additions would lose
// what 64-key sums keep.
template <int kCols, int kRows>
HWY_INLINE void AddValues(const float* HWY_RESTRICT p, const float* HWY_RESTRICT v, size_t stride,
                          int keys, const VF* shrink, float* HWY_RESTRICT out) {
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
      const VF scalar = hn::Set(d, v[key * stride + m]);
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

// Scores that the pattern does not allow become −∞. Row r of the panel is the tile's row
// first + r, of token (first + r) / heads.
template <int kCols>
HWY_INLINE void MaskScores(const TileShape& shape, int first, const KeyBlock& block,
                           float* HWY_RESTRICT scores) {
  const DF d;
  const DU du;
  HWY_ALIGN uint32_t words[2][kCols * kLanes];
  for (int r = 0; r < kCols * kLanes; ++r) {
    const int token = std::min((first + r) / shape.heads, shape.tokens - 1);
    words[0][r] = static_cast<uint32_t>(block.masks[token]);
    words[1][r] = static_cast<uint32_t>(block.masks[token] >> 32);
  }
  const VF hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int key = 0; key < block.keys; ++key) {
    const auto bit = hn::Set(du, 1u << (key % 32));
    for (int n = 0; n < kCols; ++n) {
      float* HWY_RESTRICT at = scores + (key * kCols + n) * kLanes;
      const auto seen = hn::TestBit(hn::Load(du, words[key / 32] + n * kLanes), bit);
      hn::Store(hn::IfThenElse(hn::RebindMask(d, seen), hn::Load(d, at), hidden), d, at);
    }
  }
}

// Turns scores into 2^(score − max) in place, updates the running max and sum, and gives the
// factor by which what was accumulated so far shrinks.
template <int kCols>
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
      top[n] = hn::Max(top[n], hn::Load(d, scores + (key * kCols + n) * kLanes));
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

// One panel against one block of f32 keys [keys, head_dim] and values [keys, v_head_dim].
template <int kCols>
HWY_NOINLINE void AttendPanel(const TileShape& shape, const TileMemory& tile, int first,
                              const KeyBlock& block, const float* k, const float* v) {
  constexpr int kWidth = kCols * kLanes;
  const size_t dim = static_cast<size_t>(shape.head_dim);
  const int v_dim = shape.v_head_dim;
  const float* q = tile.q + static_cast<size_t>(first) * dim;
  float* out = tile.out + static_cast<size_t>(first) * static_cast<size_t>(v_dim);
  float* scores = tile.scores;
  InPieces(block.keys, [&](auto rows, int key) {
    ScoreRows<kCols, rows()>(q, k + key * dim, dim, scores + key * kWidth);
  });
  if (block.masks != nullptr) MaskScores<kCols>(shape, first, block, scores);
  VF shrink[kCols];
  SoftmaxStep<kCols>(block.keys, scores, tile.max + first, tile.sum + first, shrink);
  InPieces(v_dim, [&](auto rows, int c) {
    AddValues<kCols, rows()>(scores, v + c, v_dim, block.keys, shrink, out + c * kWidth);
  });
}

template <class T>
HWY_INLINE void WidenRows(const T* HWY_RESTRICT from, size_t stride, int rows, size_t dim,
                          float* HWY_RESTRICT to) {
  const DF d;
  const hn::CappedTag<float, 8> d8;
  for (int r = 0; r < rows; ++r, from += stride, to += dim) {
    size_t c = 0;
    for (; c + kLanes <= dim; c += kLanes) hn::StoreU(LoadWide(d, from + c), d, to + c);
    for (; c < dim; c += hn::Lanes(d8)) hn::StoreU(LoadWide(d8, from + c), d8, to + c);
  }
}

// The rows as contiguous f32: in place if they are that already (rows far apart would fight for
// the same cache sets), else copied to `room`.
HWY_INLINE const float* ContiguousRows(DType dtype, const std::byte* from, size_t stride, int rows,
                                       size_t dim, float* room) {
  switch (dtype) {
    case DType::kF32:
      if (stride == dim) return reinterpret_cast<const float*>(from);
      WidenRows(reinterpret_cast<const float*>(from), stride, rows, dim, room);
      break;
    case DType::kF16:
      WidenRows(reinterpret_cast<const hwy::float16_t*>(from), stride, rows, dim, room);
      break;
    case DType::kBF16:
      WidenRows(reinterpret_cast<const hwy::bfloat16_t*>(from), stride, rows, dim, room);
      break;
  }
  return room;
}

void PanelAttend(const TileShape& shape, const TileMemory& tile, const KeyBlock& block,
                 const KeyBlock* next) {
  const size_t dim = static_cast<size_t>(shape.head_dim);
  const size_t v_dim = static_cast<size_t>(shape.v_head_dim);
  const float* k =
      ContiguousRows(shape.kv_dtype, block.k, block.k_row_stride, block.keys, dim, tile.keys);
  const float* v =
      ContiguousRows(shape.kv_dtype, block.v, block.v_row_stride, block.keys, v_dim, tile.values);
  if (next != nullptr) FetchBlock(shape, *next);
  const int rows = shape.rows();
  for (int first = 0; first < rows; first += kPanelVectors * kLanes) {
    if (PanelOf(first, rows, kLanes).vectors == 1) {
      AttendPanel<1>(shape, tile, first, block, k, v);
    } else {
      AttendPanel<kPanelVectors>(shape, tile, first, block, k, v);
    }
  }
}

void PanelSetQuery(const TileShape& shape, const TileMemory& tile, int row, const float* q) {
  const Panel panel = PanelOf(row, shape.rows(), kLanes);
  float* to = tile.q + static_cast<size_t>(panel.first) * static_cast<size_t>(shape.head_dim) +
              (row - panel.first);
  for (int c = 0; c < shape.head_dim; ++c) to[c * panel.vectors * kLanes] = q[c] * shape.scale;
}

void PanelGetOut(const TileShape& shape, const TileMemory& tile, int row, float* out) {
  GetPanelOut(shape, tile, row, kLanes, out);
}

}  // namespace annulus::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
