// The AVX512-BF16 kernel for few query rows (decode): lanes run along the head dims, and sixteen
// sums (of rows × keys, or rows × dims) are held in registers whatever the number of rows. Keys and
// values are each read once, in the order in which they lie. Only for bf16_dot.cc.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include "attention/cpu/bf16_simd-inl.h"
#include "attention/cpu/fetch.h"
#include "attention/cpu/kernels.h"

ANNULUS_BF16_TARGET
namespace annulus::cpu::bf16 {

inline constexpr int kStreamRowsMax = 12;  // beyond, panels are faster
inline constexpr int kSums = 16;
inline constexpr int kDotDims = 32;   // bf16 in a vector
inline constexpr int kScoreRow = 64;  // scores [row][64]
inline constexpr int kRowGroup = 4;   // query rows at a time

struct StreamRows {
  const uint16_t* data = nullptr;
  size_t stride = 0;
  int count = 0;

  const uint16_t* Row(int r) const { return data + static_cast<size_t>(r) * stride; }
};

// Which of a vector's dims from c on exist.
inline __mmask32 DimsFrom(int c, int dim) {
  return dim - c >= kDotDims ? ~0u : (1u << (dim - c)) - 1;
}

// Each 128 bits of the result: what the same lanes of v[0], v[1], v[2] and v[3] sum to.
inline __m512 QuarterSums(const __m512* v) {
  __m512 half[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512 a = v[2 * i];
    const __m512 b = v[2 * i + 1];
    half[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a, b), _mm512_shuffle_ps(a, b, 0x4e));
  }
  return _mm512_add_ps(_mm512_shuffle_ps(half[0], half[1], 0x88),
                       _mm512_shuffle_ps(half[0], half[1], 0xdd));
}

// Lane 4·i + j of the result = the sum of lane j over the quarters of v[i].
inline __m512 SumsOfQuarters(const __m512* v) {
  __m512 half[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512 a = v[2 * i];
    const __m512 b = v[2 * i + 1];
    half[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, 0x4e));
  }
  return _mm512_add_ps(_mm512_shuffle_f32x4(half[0], half[1], 0x88),
                       _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
}

// 16 sums, [key][row], as [row][key].
template <int kRows>
inline __m512 ByRows(__m512 sums) {
  if constexpr (kRows == 1) {
    return sums;
  } else if constexpr (kRows == 2) {
    return _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15), sums);
  } else {
    return _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), sums);
  }
}

// The queries of kRows (1, 2 or 4) rows. kDim is the head dim, whose vectors stay in registers, or
// 0 for any.
template <int kRows, int kDim>
struct Queries {
  static constexpr int kVectors = kDim / kDotDims;

  const uint16_t* data;
  int stride;
  int dim;
  __m512i kept[kRows][std::max(kVectors, 1)];

  __m512i At(int row, int c) const { return _mm512_load_si512(data + row * stride + c); }
};

// sums[4], [key][row], of the 4 / kRows keys from `key` on; past the end the last one is taken
// again. A key is read to its end before the next: memory is fast where it is read in its order.
template <int kRows, int kDim>
__attribute__((always_inline)) inline void SumQuarter(const Queries<kRows, kDim>& q,
                                                      const StreamRows& k, int key, __m512* sums,
                                                      const StreamFetcher& fetcher) {
#pragma GCC unroll 4
  for (int i = 0; i < 4 / kRows; ++i) {
    fetcher.Key(key + i);
    const uint16_t* row = k.Row(std::min(key + i, k.count - 1));
    __m512* of_key = sums + i * kRows;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) of_key[r] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int v = 0; v < q.kVectors; ++v) {
      const __m512i dims = _mm512_loadu_si512(row + v * kDotDims);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) of_key[r] = DotPairs(of_key[r], q.kept[r][v], dims);
    }
    if (kDim > 0) continue;
    for (int c = 0; c < q.dim; c += kDotDims) {
      const __m512i dims = _mm512_maskz_loadu_epi16(DimsFrom(c, q.dim), row + c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) of_key[r] = DotPairs(of_key[r], q.At(r, c), dims);
    }
  }
}

// scores[r][key] = q[r] · k[key]; keys go in groups of 16 / kRows, and scores that nobody asked for
// lie beyond `keys`. The sums of one quarter of a group are added up across their lanes while the
// products of the next are made, which do not wait for each other.
template <int kRows, int kDim>
__attribute__((noinline)) void StreamScores(const uint16_t* data, int stride, const StreamRows& k,
                                            int dim, float* scores, const StreamFetcher& fetcher) {
  constexpr int kKeys = kSums / kRows;
  constexpr int kQuarter = kKeys / 4;
  Queries<kRows, kDim> q = {data, stride, dim, {}};
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < q.kVectors; ++v) q.kept[r][v] = q.At(r, v * kDotDims);
  }
  __m512 even[4];
  __m512 odd[4] = {};
  __m512 quarters[4] = {};
  const auto finish_group = [&](int key) __attribute__((always_inline)) {
    quarters[3] = QuarterSums(odd);
    alignas(64) float sums[kSums];
    _mm512_store_ps(sums, ByRows<kRows>(SumsOfQuarters(quarters)));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      __builtin_memcpy(scores + r * kScoreRow + key, sums + r * kKeys, kKeys * sizeof(float));
    }
  };
  int key = 0;
  for (; key < k.count; key += kKeys) {
    SumQuarter(q, k, key, even, fetcher);
    if (key > 0) finish_group(key - kKeys);
    SumQuarter(q, k, key + kQuarter, odd, fetcher);
    quarters[0] = QuarterSums(even);
    SumQuarter(q, k, key + 2 * kQuarter, even, fetcher);
    quarters[1] = QuarterSums(odd);
    SumQuarter(q, k, key + 3 * kQuarter, odd, fetcher);
    quarters[2] = QuarterSums(even);
  }
  finish_group(key - kKeys);
}

// Scales and masks one row's scores, and turns them into 32 pairs of weights, in place; updates
// max and sum and gives the factor by which the past shrinks. Beyond `keys` weights are 0.
inline void StreamSoftmax(int keys, uint64_t seen, float scale, float* scores, float* max,
                          float* sum, float* shrink) {
  if (keys < kScoreRow) seen &= (uint64_t{1} << keys) - 1;
  const __m512 hidden = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 score[4];
  __m512 tops = _mm512_set1_ps(*max);
  __m512 total = _mm512_setzero_ps();
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto there = static_cast<__mmask16>(seen >> (16 * i));
    score[i] =
        _mm512_mask_mul_ps(hidden, there, _mm512_load_ps(scores + 16 * i), _mm512_set1_ps(scale));
    tops = _mm512_max_ps(tops, score[i]);
    // NaN if a score is not finite.
    total = _mm512_mask3_fmadd_ps(score[i], _mm512_setzero_ps(), total, there);
  }
  const float top = _mm512_reduce_max_ps(tops);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    score[i] = Exp2(_mm512_sub_ps(score[i], _mm512_set1_ps(top)));
    total = _mm512_add_ps(total, score[i]);
  }
  // Neighbouring keys make a pair, as they lie.
  _mm512_store_si512(scores, (__m512i)_mm512_cvtne2ps_pbh(score[1], score[0]));
  _mm512_store_si512(scores + 16, (__m512i)_mm512_cvtne2ps_pbh(score[3], score[2]));
  *shrink = _mm512_cvtss_f32(Exp2(_mm512_set1_ps(*max - top)));
  *max = top;
  *sum = *sum * *shrink + _mm512_reduce_add_ps(total);
}

// out[r][c…] = out[r][c…] · shrink[r] + Σ_key p[r][key] · v[key][c…] over the keys [begin, end),
// for kVectors vectors of 32 dims from c on. Pairs of keys come from interleaving two rows, which
// leaves the dims of a vector in the order of DimOrder. kWhole: all dims of the vectors exist, and
// loads have no masks: some machines read no memory ahead of loads that have.
template <int kRows, int kVectors, bool kWhole>
inline void StreamValues(const float* p, const StreamRows& v, int begin, int end, int c, int dim,
                         const float* shrink, float* out, int out_stride,
                         const StreamFetcher& fetcher = {}) {
  __mmask32 there[kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) there[i] = DimsFrom(c + i * kDotDims, dim);
  __m512 sum[kRows][2 * kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < 2 * kVectors; ++i) sum[r][i] = _mm512_setzero_ps();
  }
  for (int key = begin; key < end; key += 2) {
    fetcher.Value(key);
    fetcher.Value(key + 1);
    const uint16_t* even = v.Row(key);
    const uint16_t* odd = v.Row(std::min(key + 1, end - 1));
    __m512i weights[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto* pairs = reinterpret_cast<const int*>(p + r * kScoreRow);
      weights[r] = _mm512_set1_epi32(pairs[key / 2]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      const auto load = [&](const uint16_t* row) __attribute__((always_inline)) {
        const uint16_t* at = row + c + i * kDotDims;
        return kWhole ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi16(there[i], at);
      };
      const __m512i a = load(even);
      const __m512i b = load(odd);
      const __m512i low = _mm512_unpacklo_epi16(a, b);
      const __m512i high = _mm512_unpackhi_epi16(a, b);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        sum[r][2 * i] = DotPairs(sum[r][2 * i], low, weights[r]);
        sum[r][2 * i + 1] = DotPairs(sum[r][2 * i + 1], high, weights[r]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < 2 * kVectors; ++i) {
      float* at = out + r * out_stride + c + i * 16;
      const __m512 past = _mm512_mul_ps(_mm512_load_ps(at), _mm512_set1_ps(shrink[r]));
      _mm512_store_ps(at, _mm512_add_ps(past, sum[r][i]));
    }
  }
}

// Where dim c of a row of out is kept: interleaving works within 128 bits.
inline int DimOrder(int c) {
  const int in_vector = c % kDotDims;
  const int in_quarter = in_vector % 8;
  return c - in_vector + in_quarter / 4 * 16 + in_vector / 8 * 4 + in_quarter % 4;
}

// Rows of q, of bf16, and of out are this far apart.
inline int PaddedDims(int dim) {
  return (dim + kDotDims - 1) / kDotDims * kDotDims;
}

inline TileFloats StreamFloats(const TileShape& shape) {
  const auto rows = static_cast<size_t>(shape.rows());
  TileFloats floats;
  floats.q = rows * static_cast<size_t>(PaddedDims(shape.head_dim)) / 2;
  floats.out = rows * static_cast<size_t>(PaddedDims(shape.v_head_dim));
  floats.rows = rows;
  floats.scores = static_cast<size_t>(kRowGroup * kScoreRow);
  return floats;
}

// The keys [begin, end) where a whole row of values, kVectors vectors, has its sums in registers:
// as many query rows at a time as fit.
template <int kRows, int kVectors>
inline void StreamWholeRows(const float* p, const StreamRows& v, int begin, int end,
                            const float* shrink, float* out, StreamFetcher fetcher) {
  constexpr int kDim = kVectors * kDotDims;
  constexpr int kAtOnce = std::clamp(kSums / (2 * kVectors), 1, kRows);
  for (int r = 0; r < kRows; r += kAtOnce) {
    StreamValues<kAtOnce, kVectors, true>(p + r * kScoreRow, v, begin, end, 0, kDim, shrink + r,
                                          out + r * kDim, kDim, fetcher);
    fetcher = {};  // once
  }
}

// The same for any dim, in columns, with the rows brought into L1 in their order.
template <int kRows>
inline void StreamColumns(const float* p, const StreamRows& v, int begin, int end, int dim,
                          const float* shrink, float* out, const StreamFetcher& fetcher) {
  constexpr int kVectors = kSums / (2 * kRows);
  for (int key = begin; key < end; ++key) {
    Touch(v.Row(key), static_cast<size_t>(dim) * 2);
    fetcher.Value(key);
  }
  const int padded = PaddedDims(dim);
  int c = 0;
  for (; c + kVectors * kDotDims <= dim; c += kVectors * kDotDims) {
    StreamValues<kRows, kVectors, true>(p, v, begin, end, c, dim, shrink, out, padded);
  }
  for (; c < dim; c += kDotDims) {
    StreamValues<kRows, 1, false>(p, v, begin, end, c, dim, shrink, out, padded);
  }
}

// All keys, a few at a time, so that rows that are read more than once are then still in L1.
template <int kRows>
__attribute__((noinline)) void StreamAllValues(const float* p, const StreamRows& v, int dim,
                                               float* shrink, float* out,
                                               const StreamFetcher& fetcher) {
  for (int begin = 0; begin < v.count; begin += kValuesAtOnce) {
    const int end = std::min(begin + kValuesAtOnce, v.count);
    if (dim == 2 * kDotDims) {
      StreamWholeRows<kRows, 2>(p, v, begin, end, shrink, out, fetcher);
    } else if (dim == 4 * kDotDims) {
      StreamWholeRows<kRows, 4>(p, v, begin, end, shrink, out, fetcher);
    } else {
      StreamColumns<kRows>(p, v, begin, end, dim, shrink, out, fetcher);
    }
    for (int r = 0; r < kRows; ++r) shrink[r] = 1;
  }
}

// kRows query rows, from `first` on, against one block.
template <int kRows>
inline void StreamSome(const TileShape& shape, const TileMemory& tile, int first,
                       const KeyBlock& block, const StreamRows& k, const StreamRows& v,
                       const StreamFetcher& fetcher) {
  const int q_stride = PaddedDims(shape.head_dim);
  const auto* q = reinterpret_cast<const uint16_t*>(tile.q) + first * q_stride;
  const int dim = shape.head_dim;
  if (dim == 64) {
    StreamScores<kRows, 64>(q, q_stride, k, dim, tile.scores, fetcher);
  } else if (dim == 128) {
    StreamScores<kRows, 128>(q, q_stride, k, dim, tile.scores, fetcher);
  } else {
    StreamScores<kRows, 0>(q, q_stride, k, dim, tile.scores, fetcher);
  }
  float shrink[kRows];
  for (int r = 0; r < kRows; ++r) {
    const uint64_t seen =
        block.masks == nullptr ? ~uint64_t{0} : block.masks[(first + r) / shape.heads];
    StreamSoftmax(block.keys, seen, shape.scale, tile.scores + r * kScoreRow, tile.max + first + r,
                  tile.sum + first + r, shrink + r);
  }
  float* out = tile.out + first * PaddedDims(shape.v_head_dim);
  StreamAllValues<kRows>(tile.scores, v, shape.v_head_dim, shrink, out, fetcher);
}

inline void StreamAttend(const TileShape& shape, const TileMemory& tile, const KeyBlock& block,
                         const KeyBlock* next) {
  const auto rows_at = [](const std::byte* data, size_t stride, int count) {
    return StreamRows{reinterpret_cast<const uint16_t*>(data), stride, count};
  };
  const StreamRows k = rows_at(block.k, block.k_row_stride, block.keys);
  const StreamRows v = rows_at(block.v, block.v_row_stride, block.keys);
  const int rows = shape.rows();
  const int groups = rows / kRowGroup + (rows % kRowGroup + 1) / 2;
  StreamFetcher fetcher(shape, block, next, groups);
  for (int first = 0; first < rows;) {
    const int left = rows - first;
    if (left >= kRowGroup) {
      StreamSome<kRowGroup>(shape, tile, first, block, k, v, fetcher);
      first += kRowGroup;
    } else if (left >= 2) {
      StreamSome<2>(shape, tile, first, block, k, v, fetcher);
      first += 2;
    } else {
      StreamSome<1>(shape, tile, first, block, k, v, fetcher);
      first += 1;
    }
    fetcher.NextGroup();
  }
}

inline void StreamSetQuery(const TileShape& shape, const TileMemory& tile, int row,
                           const float* q) {
  auto* to = reinterpret_cast<uint16_t*>(tile.q) + row * PaddedDims(shape.head_dim);
  for (int c = 0; c < shape.head_dim; ++c) to[c] = ToBits(q[c]);
}

inline void StreamGetOut(const TileShape& shape, const TileMemory& tile, float* out) {
  const int dims = shape.v_head_dim;
  const float* from = tile.out;
  for (int row = 0; row < shape.rows(); ++row, from += PaddedDims(dims), out += dims) {
    for (int c = 0; c < dims; ++c) out[c] = from[DimOrder(c)];
  }
}

}  // namespace annulus::cpu::bf16
ANNULUS_BF16_TARGET_END
