// The kernel for many query rows. Rows are packed into panels of kVectors vectors: lane = row.
// Keys and values are read as scalars, broadcast, as they lie in their rows; scores [key][lane]
// stay in L1. Included once per instruction set; see kernels.cc.
#if defined(ANNULUS_CPU_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ANNULUS_CPU_PANEL_INL_H_
#undef ANNULUS_CPU_PANEL_INL_H_
#else
#define ANNULUS_CPU_PANEL_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "attention/cpu/kernels.h"
#include "attention/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace annulus::cpu::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
using DU = hn::RebindToUnsigned<DF>;

inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));
// A micro-kernel holds kScalars × kVectors sums in registers, beside the vectors it loads.
inline constexpr int kScalars = 6;
inline constexpr int kVectors = kLanes == 16 ? 4 : 2;

// The panel that row `row` of `rows` lies in. All panels are kVectors wide, but the last one only
// as wide as its rows need.
struct Panel {
  int first = 0;    // its first row
  int vectors = 0;  // 1, 2 or 4

  int width() const { return vectors * kLanes; }
};

HWY_INLINE Panel PanelOf(int row, int rows) {
  const int full = kVectors * kLanes;
  const int first = row / full * full;
  int vectors = kVectors;
  while (vectors > 1 && rows - first <= vectors / 2 * kLanes) vectors /= 2;
  return {first, vectors};
}

// scores[m][lane] = Σ_c k[m][c] · q[c][lane] for kRows keys.
template <int kCols, int kRows>
HWY_INLINE void ScoreRows(const float* HWY_RESTRICT q, const float* HWY_RESTRICT k, size_t stride,
                          size_t dim, float* HWY_RESTRICT scores) {
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
      const VF scalar = hn::Set(d, k[m * stride + c]);
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
  for (int n = 0; n < kCols; ++n) {
    const VF old = hn::Load(d, max + n * kLanes);
    VF top = old;
    for (int key = 0; key < keys; ++key) {
      top = hn::Max(top, hn::Load(d, scores + (key * kCols + n) * kLanes));
    }
    VF total = hn::Zero(d);
    for (int key = 0; key < keys; ++key) {
      float* HWY_RESTRICT at = scores + (key * kCols + n) * kLanes;
      const VF p = Exp2(d, hn::Sub(hn::Load(d, at), top));
      hn::Store(p, d, at);
      total = hn::Add(total, p);
    }
    shrink[n] = Exp2(d, hn::Sub(old, top));
    hn::Store(top, d, max + n * kLanes);
    hn::Store(hn::MulAdd(hn::Load(d, sum + n * kLanes), shrink[n], total), d, sum + n * kLanes);
  }
}

// One panel against one block of f32 keys and values.
template <int kCols>
HWY_NOINLINE void AttendPanel(const TileShape& shape, const TileMemory& tile, int first,
                              const KeyBlock& block, const float* k, size_t k_stride,
                              const float* v, size_t v_stride) {
  constexpr int kWidth = kCols * kLanes;
  const size_t dim = static_cast<size_t>(shape.head_dim);
  const int v_dim = shape.v_head_dim;
  const float* q = tile.q + static_cast<size_t>(first) * dim;
  float* out = tile.out + static_cast<size_t>(first) * static_cast<size_t>(v_dim);
  float* scores = tile.scores;
  int key = 0;
  for (; key + kScalars <= block.keys; key += kScalars) {
    ScoreRows<kCols, kScalars>(q, k + key * k_stride, k_stride, dim, scores + key * kWidth);
  }
  for (; key + 2 <= block.keys; key += 2) {
    ScoreRows<kCols, 2>(q, k + key * k_stride, k_stride, dim, scores + key * kWidth);
  }
  if (key < block.keys) {
    ScoreRows<kCols, 1>(q, k + key * k_stride, k_stride, dim, scores + key * kWidth);
  }
  if (block.masks != nullptr) MaskScores<kCols>(shape, first, block, scores);
  VF shrink[kCols];
  SoftmaxStep<kCols>(block.keys, scores, tile.max + first, tile.sum + first, shrink);
  int c = 0;
  for (; c + kScalars <= v_dim; c += kScalars) {
    AddValues<kCols, kScalars>(scores, v + c, v_stride, block.keys, shrink, out + c * kWidth);
  }
  for (; c < v_dim; c += 2) {  // dims are multiples of 8
    AddValues<kCols, 2>(scores, v + c, v_stride, block.keys, shrink, out + c * kWidth);
  }
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
                 const KeyBlock* /*next*/) {
  const size_t dim = static_cast<size_t>(shape.head_dim);
  const size_t v_dim = static_cast<size_t>(shape.v_head_dim);
  const float* k =
      ContiguousRows(shape.kv_dtype, block.k, block.k_row_stride, block.keys, dim, tile.keys);
  const float* v =
      ContiguousRows(shape.kv_dtype, block.v, block.v_row_stride, block.keys, v_dim, tile.values);
  const int rows = shape.rows();
  for (int first = 0; first < rows; first += kVectors * kLanes) {
    switch (PanelOf(first, rows).vectors) {
      case 1:
        AttendPanel<1>(shape, tile, first, block, k, dim, v, v_dim);
        break;
      case 2:
        AttendPanel<2>(shape, tile, first, block, k, dim, v, v_dim);
        break;
      default:
        AttendPanel<kVectors>(shape, tile, first, block, k, dim, v, v_dim);
        break;
    }
  }
}

void PanelSetQuery(const TileShape& shape, const TileMemory& tile, int row, const float* q) {
  const Panel panel = PanelOf(row, shape.rows());
  float* to = tile.q + static_cast<size_t>(panel.first) * static_cast<size_t>(shape.head_dim) +
              (row - panel.first);
  for (int c = 0; c < shape.head_dim; ++c) to[c * panel.width()] = q[c];
}

void PanelGetOut(const TileShape& shape, const TileMemory& tile, int row, float* out) {
  const Panel panel = PanelOf(row, shape.rows());
  const float* from = tile.out +
                      static_cast<size_t>(panel.first) * static_cast<size_t>(shape.v_head_dim) +
                      (row - panel.first);
  for (int c = 0; c < shape.v_head_dim; ++c) out[c] = from[c * panel.width()];
}

}  // namespace annulus::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
