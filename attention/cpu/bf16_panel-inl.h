// The AVX512-BF16 kernel for many query rows, on the plan of panel-inl.h with pairs in the place of
// single values: pairs of neighbouring dims for q·k, which lie together in memory as they are, and
// pairs of neighbouring keys for p·v, so that values are paired once per block. q stays as it was
// given, a bf16, and scores are scaled in f32; the weights p are rounded to bf16, their sum is not.
// Only for bf16_dot.cc.
#pragma once

#include <cstddef>
#include <cstring>
#include <limits>

#include "attention/cpu/bf16_simd-inl.h"
#include "attention/cpu/fetch.h"
#include "attention/cpu/kernels.h"
#include "attention/cpu/panel_layout.h"

ANNULUS_BF16_TARGET
namespace annulus::cpu::bf16 {

inline constexpr int kLanes = 16;
inline constexpr int kScalars = 8;  // broadcast against each vector of rows: 8 × 2 sums

// scores[m][lane] = scale · Σ k[m][·] · q[·][lane] for kRows keys; `pairs` = head_dim / 2.
template <int kCols, int kRows>
inline void ScoreRows(const uint32_t* q, const uint32_t* k, size_t pairs, __m512 scale,
                      float* scores) {
  __m512 sum[kRows][kCols];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) sum[m][n] = _mm512_setzero_ps();
  }
  for (size_t c = 0; c < pairs; ++c) {
    __m512i lanes[kCols];
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) lanes[n] = _mm512_load_si512(q + (c * kCols + n) * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const __m512i scalar = _mm512_set1_epi32(static_cast<int>(k[m * pairs + c]));
#pragma GCC unroll 8
      for (int n = 0; n < kCols; ++n) sum[m][n] = DotPairs(sum[m][n], lanes[n], scalar);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) {
      _mm512_store_ps(scores + (m * kCols + n) * kLanes, _mm512_mul_ps(sum[m][n], scale));
    }
  }
}

// out[m][lane] = out[m][lane] · shrink[lane] + Σ v[key][m] · p[key][lane] for kScalars dims, v
// packed by PackValues.
template <int kCols>
inline void AddValues(const uint32_t* p, const uint32_t* v, int key_pairs, const __m512* shrink,
                      float* out) {
  __m512 sum[kScalars][kCols];
#pragma GCC unroll 8
  for (int m = 0; m < kScalars; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) sum[m][n] = _mm512_setzero_ps();
  }
  for (int pair = 0; pair < key_pairs; ++pair) {
    __m512i lanes[kCols];
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) lanes[n] = _mm512_load_si512(p + (pair * kCols + n) * kLanes);
    const uint32_t* row = v + pair * kScalars;
#pragma GCC unroll 8
    for (int m = 0; m < kScalars; ++m) {
      const __m512i scalar = _mm512_set1_epi32(static_cast<int>(row[m]));
#pragma GCC unroll 8
      for (int n = 0; n < kCols; ++n) sum[m][n] = DotPairs(sum[m][n], lanes[n], scalar);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kScalars; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kCols; ++n) {
      float* at = out + (m * kCols + n) * kLanes;
      _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_load_ps(at), shrink[n], sum[m][n]));
    }
  }
}

// As MaskScores and SoftmaxStep of panel-inl.h.
template <int kCols>
inline void MaskScores(const TileShape& shape, int first, const KeyBlock& block, float* scores,
                       float* sum) {
  const __m512 hidden = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int n = 0; n < kCols; ++n) {
    alignas(64) uint32_t words[2][kLanes];
    for (int r = 0; r < kLanes; ++r) {
      const int token = (first + n * kLanes + r) / shape.heads;
      const uint64_t mask = block.masks[token < shape.tokens ? token : shape.tokens - 1];
      words[0][r] = static_cast<uint32_t>(mask);
      words[1][r] = static_cast<uint32_t>(mask >> 32);
    }
    __m512 not_finite = _mm512_load_ps(sum + n * kLanes);
    for (int key = 0; key < block.keys; ++key) {
      float* at = scores + (key * kCols + n) * kLanes;
      const __m512i bit = _mm512_set1_epi32(static_cast<int>(1u << (key % 32)));
      const __mmask16 seen = _mm512_test_epi32_mask(_mm512_load_si512(words[key / 32]), bit);
      const __m512 score = _mm512_maskz_load_ps(seen, at);
      not_finite = _mm512_fmadd_ps(score, _mm512_setzero_ps(), not_finite);
      _mm512_store_ps(at, _mm512_mask_blend_ps(seen, hidden, score));
    }
    _mm512_store_ps(sum + n * kLanes, not_finite);
  }
}

// Turns scores [key][lane] into pairs of weights [key / 2][lane], in place, which an odd last key
// shares with a 0; updates the running max and sum; gives the factor by which the past shrinks.
template <int kCols, bool kMasked>
inline void SoftmaxStep(int keys, float* scores, float* max, float* sum, __m512* shrink) {
  __m512 top[kCols];
  __m512 total[kCols];
  for (int n = 0; n < kCols; ++n) {
    top[n] = _mm512_load_ps(max + n * kLanes);
    total[n] = _mm512_setzero_ps();
  }
  // Products of scores: finite unless a score is not, or one is beyond 2^60.
  __m512 products[kCols];
  for (int n = 0; n < kCols; ++n) products[n] = _mm512_setzero_ps();
  int key = 0;
  for (; key + 2 <= keys; key += 2) {
#pragma GCC unroll 2
    for (int n = 0; n < kCols; ++n) {
      const float* from = scores + (key * kCols + n) * kLanes;
      const __m512 even = _mm512_load_ps(from);
      const __m512 odd = _mm512_load_ps(from + kCols * kLanes);
      top[n] = _mm512_max_ps(_mm512_max_ps(top[n], even), odd);
      if (!kMasked) products[n] = _mm512_fmadd_ps(even, odd, products[n]);
    }
  }
  for (int n = 0; n < kCols && key < keys; ++n) {
    const __m512 last = _mm512_load_ps(scores + (key * kCols + n) * kLanes);
    top[n] = _mm512_max_ps(top[n], last);
    if (!kMasked) products[n] = _mm512_fmadd_ps(last, last, products[n]);
  }
  for (int n = 0; n < kCols && !kMasked; ++n) {
    const __m512 zero = _mm512_sub_ps(products[n], products[n]);  // or NaN
    if (_mm512_cmp_ps_mask(zero, zero, _CMP_UNORD_Q) == 0) continue;
    for (int i = 0; i < keys; ++i) {
      const __m512 score = _mm512_load_ps(scores + (i * kCols + n) * kLanes);
      total[n] = _mm512_fmadd_ps(score, _mm512_setzero_ps(), total[n]);
    }
  }
  for (key = 0; key < keys; key += 2) {
#pragma GCC unroll 2
    for (int n = 0; n < kCols; ++n) {
      const float* from = scores + (key * kCols + n) * kLanes;
      const __m512 even = Exp2(_mm512_sub_ps(_mm512_load_ps(from), top[n]));
      __m512 odd = _mm512_setzero_ps();
      if (key + 1 < keys) {
        odd = Exp2(_mm512_sub_ps(_mm512_load_ps(from + kCols * kLanes), top[n]));
      }
      total[n] = _mm512_add_ps(total[n], _mm512_add_ps(even, odd));
      _mm512_store_si512(scores + (key / 2 * kCols + n) * kLanes, RoundToPairs(even, odd));
    }
  }
  for (int n = 0; n < kCols; ++n) {
    shrink[n] = Exp2(_mm512_sub_ps(_mm512_load_ps(max + n * kLanes), top[n]));
    _mm512_store_ps(max + n * kLanes, top[n]);
    float* at = sum + n * kLanes;
    _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_load_ps(at), shrink[n], total[n]));
  }
}

// One panel against one block: keys as they are, values packed.
template <int kCols>
void AttendPanel(const TileShape& shape, const TileMemory& tile, int first, const KeyBlock& block,
                 const uint32_t* k, const uint32_t* v, const BlockFetcher& next) {
  constexpr int kWidth = kCols * kLanes;
  const size_t pairs = static_cast<size_t>(shape.head_dim) / 2;
  const size_t v_dim = static_cast<size_t>(shape.v_head_dim);
  const auto* q = reinterpret_cast<const uint32_t*>(tile.q) + static_cast<size_t>(first) * pairs;
  float* out = tile.out + static_cast<size_t>(first) * v_dim;
  float* scores = tile.scores;
  const __m512 scale = _mm512_set1_ps(shape.scale);
  int key = 0;
  for (; key + kScalars <= block.keys; key += kScalars) {
    next.Keys(key, key + kScalars);
    ScoreRows<kCols, kScalars>(q, k + key * pairs, pairs, scale, scores + key * kWidth);
  }
  for (; key < block.keys; ++key) {
    ScoreRows<kCols, 1>(q, k + key * pairs, pairs, scale, scores + key * kWidth);
  }
  __m512 shrink[kCols];
  if (block.masks != nullptr) {
    MaskScores<kCols>(shape, first, block, scores, tile.sum + first);
    SoftmaxStep<kCols, true>(block.keys, scores, tile.max + first, tile.sum + first, shrink);
  } else {
    SoftmaxStep<kCols, false>(block.keys, scores, tile.max + first, tile.sum + first, shrink);
  }
  const auto* p = reinterpret_cast<const uint32_t*>(scores);
  const int key_pairs = (block.keys + 1) / 2;
  const int dims = shape.v_head_dim;  // a multiple of 8
  for (int c = 0; c < dims; c += kScalars) {
    next.Values(c * 64 / dims, (c + kScalars) * 64 / dims);
    AddValues<kCols>(p, v + PackedAt(c, key_pairs), key_pairs, shrink, out + c * kWidth);
  }
}

// The keys' rows end to end: in place if they lie so, else copied (rows far apart would fight for
// the same cache sets).
inline const uint32_t* ContiguousKeys(const TileShape& shape, const KeyBlock& block, float* room) {
  const size_t row_bytes = static_cast<size_t>(shape.head_dim) * 2;
  if (block.k_row_stride == static_cast<size_t>(shape.head_dim)) {
    return reinterpret_cast<const uint32_t*>(block.k);
  }
  auto* to = reinterpret_cast<std::byte*>(room);
  for (int r = 0; r < block.keys; ++r) {
    const std::byte* from = block.k + static_cast<size_t>(r) * block.k_row_stride * 2;
    std::memcpy(to + static_cast<size_t>(r) * row_bytes, from, row_bytes);
  }
  return reinterpret_cast<const uint32_t*>(room);
}

// The values in pairs of keys, in the pieces of kScalars dims that AddValues takes at a time: each
// [key / 2, kScalars] end to end, since a column of pieces as they lie in memory would fight for
// few cache sets. An odd last key shares with a 0.
inline void PackValues(const TileShape& shape, const KeyBlock& block, uint32_t* pairs) {
  const auto* even = reinterpret_cast<const uint16_t*>(block.v);
  const int key_pairs = (block.keys + 1) / 2;
  for (int pair = 0; pair < key_pairs; ++pair, even += 2 * block.v_row_stride) {
    const uint16_t* odd = 2 * pair + 1 < block.keys ? even + block.v_row_stride : nullptr;
    for (int c = 0; c < shape.v_head_dim; c += kScalars) {
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(even + c));
      __m128i b = _mm_setzero_si128();
      if (odd != nullptr) b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(odd + c));
      auto* to = reinterpret_cast<__m128i*>(pairs + PackedAt(c, key_pairs) + pair * kScalars);
      _mm_storeu_si128(to, _mm_unpacklo_epi16(a, b));
      _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(a, b));
    }
  }
}

inline TileFloats PanelFloatsOf(const TileShape& shape) {
  return PanelFloats(shape, kLanes, shape.head_dim / 2, kBlockKeys / 2);
}

inline void PanelAttend(const TileShape& shape, const TileMemory& tile, const KeyBlock& block,
                        const KeyBlock* next) {
  const uint32_t* k = ContiguousKeys(shape, block, tile.keys);
  auto* v = reinterpret_cast<uint32_t*>(tile.values);
  PackValues(shape, block, v);
  const int rows = shape.rows();
  constexpr int kPanelRows = kPanelVectors * kLanes;
  BlockFetcher fetcher(shape, next, (rows + kPanelRows - 1) / kPanelRows);
  for (int first = 0; first < rows; first += kPanelRows, fetcher.NextPanel()) {
    if (SeesNothing(shape, block, first, kLanes)) continue;
    if (PanelOf(first, rows, kLanes).vectors == 1) {
      AttendPanel<1>(shape, tile, first, block, k, v, fetcher);
    } else {
      AttendPanel<kPanelVectors>(shape, tile, first, block, k, v, fetcher);
    }
  }
}

inline void PanelSetQuery(const TileShape& shape, const TileMemory& tile, int row, const float* q) {
  const Panel panel = PanelOf(row, shape.rows(), kLanes);
  const int pairs = shape.head_dim / 2;
  auto* to = reinterpret_cast<uint32_t*>(tile.q) +
             static_cast<size_t>(panel.first) * static_cast<size_t>(pairs) + (row - panel.first);
  for (int c = 0; c < pairs; ++c) {
    to[c * panel.vectors * kLanes] = ToBits(q[2 * c]) | static_cast<uint32_t>(ToBits(q[2 * c + 1]))
                                                            << 16;
  }
}

inline void PanelGetOut(const TileShape& shape, const TileMemory& tile, float* out) {
  GetPanelOut(shape, tile, kLanes, out);
}

}  // namespace annulus::cpu::bf16
ANNULUS_BF16_TARGET_END
