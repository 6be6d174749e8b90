// The kernel for few query rows (decode): the block's keys, then its values, are each read once, in
// the order in which they lie, and widened in registers. Lanes run along the head dims. Included
// once per instruction set; see kernels.cc.
#if defined(ANNULUS_CPU_STREAM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ANNULUS_CPU_STREAM_INL_H_
#undef ANNULUS_CPU_STREAM_INL_H_
#else
#define ANNULUS_CPU_STREAM_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "attention/cpu/fetch.h"
#include "attention/cpu/kernels.h"
#include "attention/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
#if HWY_TARGET != HWY_SCALAR
namespace annulus::cpu::HWY_NAMESPACE {

inline constexpr int kStreamLanes = HWY_MAX_BYTES / 4;
inline constexpr int kStreamSums = HWY_MAX_BYTES == 64 ? 16 : 8;    // sums held in registers
inline constexpr int kRowGroup = HWY_MAX_BYTES == 64 ? 4 : 2;       // query rows at a time
inline constexpr int kStreamRowsMax = HWY_MAX_BYTES == 64 ? 8 : 4;  // beyond, panels are faster
inline constexpr int kScoreRow = 64;                                // scores [row][64]

// Dims are taken in pairs of vectors. A bf16 pair is one load of 2·lanes values, split into even
// and odd ones by a shift and a mask; q and out are kept in that order, so nothing is shuffled.
template <class D>
HWY_INLINE void LoadPair(D d, const float* p, hn::Vec<D>& a, hn::Vec<D>& b) {
  a = hn::LoadU(d, p);
  b = hn::LoadU(d, p + hn::Lanes(d));
}
template <class D>
HWY_INLINE void LoadPair(D d, const hwy::float16_t* p, hn::Vec<D>& a, hn::Vec<D>& b) {
  a = LoadWide(d, p);
  b = LoadWide(d, p + hn::Lanes(d));
}
template <class D>
HWY_INLINE void LoadPair(D d, const hwy::bfloat16_t* p, hn::Vec<D>& a, hn::Vec<D>& b) {
  const hn::RebindToUnsigned<D> du;
  const hn::Repartition<uint16_t, D> d16;
  const auto bits = hn::BitCast(du, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)));
  a = hn::BitCast(d, hn::ShiftLeft<16>(bits));
  b = hn::BitCast(d, hn::And(bits, hn::Set(du, 0xffff0000u)));
}

// Lanes used for rows of `dim` elements: all if the dims fill pairs of full vectors, else 4.
HWY_INLINE int LanesFor(int dim) {
  return dim % (2 * kStreamLanes) == 0 ? kStreamLanes : 4;
}

// Where element c of a row of `dim` is kept.
HWY_INLINE int PairOrder(DType dtype, int dim, int c) {
  if (dtype != DType::kBF16) return c;
  const int lanes = LanesFor(dim);
  const int in_pair = c % (2 * lanes);
  return c - in_pair + in_pair / 2 + (in_pair % 2) * lanes;
}

template <class D>
HWY_INLINE void StoreFour(D d, hn::Vec<D> v, float* out) {
  if constexpr (hn::MaxLanes(d) > 4) {
    const hn::Half<D> half;
    StoreFour(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), out);
  } else {
    hn::StoreU(v, d, out);
  }
}

// out[i] = the sum over the lanes of v[i], four at a time for the price of one and a half.
template <class D>
HWY_INLINE void StoreSums(D d, const hn::Vec<D>* v, float* out) {
  const hn::Repartition<uint64_t, D> d64;
  const auto v01 = hn::BitCast(
      d64, hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1])));
  const auto v23 = hn::BitCast(
      d64, hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3])));
  StoreFour(d,
            hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, v01, v23)),
                    hn::BitCast(d, hn::InterleaveUpper(d64, v01, v23))),
            out);
}

template <class T>
struct Rows {
  const T* data = nullptr;
  size_t stride = 0;
  int count = 0;

  HWY_INLINE const T* Row(int r) const { return data + static_cast<size_t>(r) * stride; }
};

// scores[r][key] = q[r] · k[key] for kRows rows. Keys go in fours; past the end the last one is
// taken again, and its scores lie beyond `keys`. A row is read to its end before the next: memory
// is fast where it is read in its order. A row has kPairs pairs of vectors, or any number if that
// is 0.
template <int kCount, int kRows, int kPairs, class T>
HWY_NOINLINE void StreamScores(const float* HWY_RESTRICT q, const Rows<T>& k, int any_dim,
                               float* HWY_RESTRICT scores, const StreamFetcher& fetcher) {
  const hn::CappedTag<float, kCount> d;
  using V = hn::Vec<decltype(d)>;
  const int dim = kPairs > 0 ? kPairs * 2 * kCount : any_dim;
  for (int key = 0; key < k.count; key += 4) {
    V sum[kRows][4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      fetcher.Key(key + i);
      const T* row = k.Row(std::min(key + i, k.count - 1));
      V odd[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[r][i] = odd[r] = hn::Zero(d);
#pragma GCC unroll 4
      for (int c = 0; c < dim; c += 2 * kCount) {
        V a;
        V b;
        LoadPair(d, row + c, a, b);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          sum[r][i] = hn::MulAdd(a, hn::LoadU(d, q + r * dim + c), sum[r][i]);
          odd[r] = hn::MulAdd(b, hn::LoadU(d, q + r * dim + c + kCount), odd[r]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[r][i] = hn::Add(sum[r][i], odd[r]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) StoreSums(d, sum[r], scores + r * kScoreRow + key);
  }
}

// out[r][c…] = out[r][c…] · shrink[r] + Σ_key p[r][key] · v[key][c…] over the keys [begin, end),
// for kPairs pairs of vectors from c on. The block's sum is made apart, as in the panel kernel.
template <int kCount, int kRows, int kPairs, class T>
HWY_INLINE void StreamValues(const float* HWY_RESTRICT p, const Rows<T>& v, int begin, int end,
                             int c, int dim, const float* shrink, float* HWY_RESTRICT out,
                             const StreamFetcher& fetcher = {}) {
  const hn::CappedTag<float, kCount> d;
  using V = hn::Vec<decltype(d)>;
  V sum[kRows][2 * kPairs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < 2 * kPairs; ++i) sum[r][i] = hn::Zero(d);
  }
  for (int key = begin; key < end; ++key) {
    fetcher.Value(key);
    const T* row = v.Row(key) + c;
#pragma GCC unroll 16
    for (int i = 0; i < kPairs; ++i) {
      V a;
      V b;
      LoadPair(d, row + i * 2 * kCount, a, b);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const V weight = hn::Set(d, p[r * kScoreRow + key]);
        sum[r][2 * i] = hn::MulAdd(a, weight, sum[r][2 * i]);
        sum[r][2 * i + 1] = hn::MulAdd(b, weight, sum[r][2 * i + 1]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < 2 * kPairs; ++i) {
      float* HWY_RESTRICT at = out + r * dim + c + i * kCount;
      hn::StoreU(hn::MulAdd(hn::LoadU(d, at), hn::Set(d, shrink[r]), sum[r][i]), d, at);
    }
  }
}

// Like the panel kernel's softmax, with keys in lanes. scores [64]; beyond `keys` it becomes 0.
HWY_INLINE void StreamSoftmax(int keys, uint64_t seen, float* HWY_RESTRICT scores, float* max,
                              float* sum, float* shrink) {
  const hn::ScalableTag<float> d;
  if (keys < kScoreRow) seen &= (uint64_t{1} << keys) - 1;
  auto top = hn::Set(d, *max);
  auto total = hn::Zero(d);
  for (int key = 0; key < kScoreRow; key += kStreamLanes) {
    auto score = hn::LoadU(d, scores + key);
    if (seen != ~uint64_t{0}) {
      const uint64_t bits = seen >> key;
      const auto there = hn::LoadMaskBits(d, reinterpret_cast<const uint8_t*>(&bits));
      total = hn::MulAdd(hn::IfThenElseZero(there, score), hn::Zero(d), total);
      score = hn::IfThenElse(there, score, hn::Set(d, -std::numeric_limits<float>::infinity()));
      hn::StoreU(score, d, scores + key);
    } else {
      total = hn::MulAdd(score, hn::Zero(d), total);
    }
    top = hn::Max(top, score);
  }
  top = hn::MaxOfLanes(d, top);
  for (int key = 0; key < kScoreRow; key += kStreamLanes) {
    const auto p = Exp2(d, hn::Sub(hn::LoadU(d, scores + key), top));
    hn::StoreU(p, d, scores + key);
    total = hn::Add(total, p);
  }
  *shrink = hn::GetLane(Exp2(d, hn::Sub(hn::Set(d, *max), top)));
  *max = hn::GetLane(top);
  *sum = *sum * *shrink + hn::GetLane(hn::SumOfLanes(d, total));
}

// The keys [begin, end) where a whole row of values, kPairs pairs of vectors, has its sums in
// registers: as many query rows at a time as fit.
template <int kCount, int kRows, int kPairs, class T>
HWY_INLINE void StreamWholeRows(const float* p, const Rows<T>& v, int begin, int end, int dim,
                                const float* shrink, float* out, StreamFetcher fetcher) {
  constexpr int kAtOnce = std::clamp(kStreamSums / (2 * kPairs), 1, kRows);
  for (int r = 0; r < kRows; r += kAtOnce) {
    StreamValues<kCount, kAtOnce, kPairs>(p + r * kScoreRow, v, begin, end, 0, dim, shrink + r,
                                          out + r * dim, fetcher);
    fetcher = {};  // once
  }
}

// The same for any dim, in columns, with the rows brought into L1 in their order.
template <int kCount, int kRows, class T>
HWY_INLINE void StreamColumns(const float* p, const Rows<T>& v, int begin, int end, int dim,
                              const float* shrink, float* out, const StreamFetcher& fetcher) {
  constexpr int kPairs = std::max(1, kStreamSums / (2 * kRows));
  for (int key = begin; key < end; ++key) {
    Touch(v.Row(key), static_cast<size_t>(dim) * sizeof(T));
    fetcher.Value(key);
  }
  int c = 0;
  for (; c + 2 * kCount * kPairs <= dim; c += 2 * kCount * kPairs) {
    StreamValues<kCount, kRows, kPairs>(p, v, begin, end, c, dim, shrink, out);
  }
  for (; c < dim; c += 2 * kCount) {
    StreamValues<kCount, kRows, 1>(p, v, begin, end, c, dim, shrink, out);
  }
}

// All keys, a few at a time, so that rows that are read more than once are then still in L1.
template <int kCount, int kRows, class T>
HWY_NOINLINE void StreamAllValues(const float* p, const Rows<T>& v, int dim, float* shrink,
                                  float* out, const StreamFetcher& fetcher) {
  for (int begin = 0; begin < v.count; begin += kValuesAtOnce) {
    const int end = std::min(begin + kValuesAtOnce, v.count);
    if (dim == 4 * kCount) {
      StreamWholeRows<kCount, kRows, 2>(p, v, begin, end, dim, shrink, out, fetcher);
    } else if (dim == 8 * kCount) {
      StreamWholeRows<kCount, kRows, 4>(p, v, begin, end, dim, shrink, out, fetcher);
    } else {
      StreamColumns<kCount, kRows>(p, v, begin, end, dim, shrink, out, fetcher);
    }
    for (int r = 0; r < kRows; ++r) shrink[r] = 1;
  }
}

// kRows query rows, from `first` on, against one block.
template <int kRows, class T>
HWY_INLINE void StreamRows(const TileShape& shape, const TileMemory& tile, int first,
                           const KeyBlock& block, const Rows<T>& k, const Rows<T>& v,
                           const StreamFetcher& fetcher) {
  const int dim = shape.head_dim;
  const int v_dim = shape.v_head_dim;
  const float* q = tile.q + static_cast<size_t>(first * dim);
  float* out = tile.out + static_cast<size_t>(first * v_dim);
  if (dim == 4 * kStreamLanes) {
    StreamScores<kStreamLanes, kRows, 2>(q, k, dim, tile.scores, fetcher);
  } else if (dim == 8 * kStreamLanes) {
    StreamScores<kStreamLanes, kRows, 4>(q, k, dim, tile.scores, fetcher);
  } else if (LanesFor(dim) == kStreamLanes) {
    StreamScores<kStreamLanes, kRows, 0>(q, k, dim, tile.scores, fetcher);
  } else {
    StreamScores<4, kRows, 0>(q, k, dim, tile.scores, fetcher);
  }
  float shrink[kRows];
  for (int r = 0; r < kRows; ++r) {
    const uint64_t seen =
        block.masks == nullptr ? ~uint64_t{0} : block.masks[(first + r) / shape.heads];
    StreamSoftmax(block.keys, seen, tile.scores + r * kScoreRow, tile.max + first + r,
                  tile.sum + first + r, shrink + r);
  }
  if (LanesFor(v_dim) == kStreamLanes) {
    StreamAllValues<kStreamLanes, kRows>(tile.scores, v, v_dim, shrink, out, fetcher);
  } else {
    StreamAllValues<4, kRows>(tile.scores, v, v_dim, shrink, out, fetcher);
  }
}

template <class T>
HWY_INLINE void StreamBlock(const TileShape& shape, const TileMemory& tile, const KeyBlock& block,
                            const KeyBlock* next) {
  const Rows<T> k{reinterpret_cast<const T*>(block.k), block.k_row_stride, block.keys};
  const Rows<T> v{reinterpret_cast<const T*>(block.v), block.v_row_stride, block.keys};
  const int rows = shape.rows();
  const int groups = rows / kRowGroup + (rows % kRowGroup + 1) / 2;
  StreamFetcher fetcher(shape, block, next, groups);
  for (int first = 0; first < rows;) {
    if (kRowGroup == 4 && rows - first >= 4) {
      StreamRows<kRowGroup, T>(shape, tile, first, block, k, v, fetcher);
      first += 4;
    } else if (rows - first >= 2) {
      StreamRows<2, T>(shape, tile, first, block, k, v, fetcher);
      first += 2;
    } else {
      StreamRows<1, T>(shape, tile, first, block, k, v, fetcher);
      first += 1;
    }
    fetcher.NextGroup();
  }
}

TileFloats StreamFloats(const TileShape& shape) {
  const auto rows = static_cast<size_t>(shape.rows());
  TileFloats floats;
  floats.q = rows * static_cast<size_t>(shape.head_dim);
  floats.out = rows * static_cast<size_t>(shape.v_head_dim);
  floats.rows = rows;
  floats.scores = static_cast<size_t>(kRowGroup * kScoreRow);
  return floats;
}

void StreamAttend(const TileShape& shape, const TileMemory& tile, const KeyBlock& block,
                  const KeyBlock* next) {
  switch (shape.kv_dtype) {
    case DType::kF32:
      return StreamBlock<float>(shape, tile, block, next);
    case DType::kF16:
      return StreamBlock<hwy::float16_t>(shape, tile, block, next);
    case DType::kBF16:
      return StreamBlock<hwy::bfloat16_t>(shape, tile, block, next);
  }
}

void StreamSetQuery(const TileShape& shape, const TileMemory& tile, int row, const float* q) {
  float* to = tile.q + row * shape.head_dim;
  for (int c = 0; c < shape.head_dim; ++c) {
    to[PairOrder(shape.kv_dtype, shape.head_dim, c)] = q[c] * shape.scale;
  }
}

void StreamGetOut(const TileShape& shape, const TileMemory& tile, float* out) {
  const int dims = shape.v_head_dim;
  const float* from = tile.out;
  for (int row = 0; row < shape.rows(); ++row, from += dims, out += dims) {
    for (int c = 0; c < dims; ++c) out[c] = from[PairOrder(shape.kv_dtype, dims, c)];
  }
}

}  // namespace annulus::cpu::HWY_NAMESPACE
#endif
HWY_AFTER_NAMESPACE();

#endif
