// The steps of kernels that hold 128 query rows against one 64-token block after another: copies of
// rows, scores, values. Each warp holds 32 rows (16 for head dims beyond 128), so that a row's
// softmax stays in four threads.
#pragma once

#include <cstdint>

#include "attention/cuda/sm80/mma.cuh"

namespace annulus::cuda {

template <int kDim>
struct PanelShape {
  static constexpr int kWarps = kDim > 128 ? 8 : 4;
  static constexpr int kRowTiles = 8 / kWarps;  // of 16 rows, by warp
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kChunks = kDim / 8;
  static constexpr int kRowBytes = 2 * kDim;
  static constexpr int kSharedBytes = (2 * kPanelRows + 2 * kBlockKeys) * kRowBytes + kSharedAlign;
};

template <typename T, int kDim>
__device__ inline void LoadBlock(const void* rows, int row_stride, int dim, int keys, uint32_t to) {
  using Shape = PanelShape<kDim>;
  constexpr int kRows = Shape::kThreads / Shape::kChunks;  // by step
  static_assert(kRows % 8 == 0);                           // so that the chunk is the same in all
  const int row = threadIdx.x / Shape::kChunks;
  const int chunk = threadIdx.x % Shape::kChunks;
  const bool exists = rows != nullptr && chunk * 8 < dim;
  const T* from = static_cast<const T*>(rows);
  if (exists) from += int64_t{row} * row_stride + chunk * 8;
  to += ChunkOffset<Shape::kChunks>(row, chunk);
#pragma unroll
  for (int step = 0; step < kBlockKeys / kRows; ++step) {
    const bool there = exists && row + step * kRows < keys;
    CopyAsync16(to + step * kRows * Shape::kRowBytes,
                there ? from + step * kRows * row_stride : from, there);
  }
}

// S = Q · K of the warp's rows and a block's keys.
template <typename T, int kDim>
__device__ inline void Score(uint32_t q, uint32_t k, int warp_row, int lane,
                             float (&s)[PanelShape<kDim>::kRowTiles][8][4]) {
  using Shape = PanelShape<kDim>;
  constexpr int kRowTiles = Shape::kRowTiles;
  q += ChunkOffset<Shape::kChunks>(warp_row + lane % 16, lane / 16);
  k += ChunkOffset<Shape::kChunks>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    uint32_t queries[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      LoadMatrices(queries[m], NextChunks(q, d) + 16 * m * Shape::kRowBytes);
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      uint32_t keys[4];
      LoadMatrices(keys, NextChunks(k, d) + 16 * n * Shape::kRowBytes);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        Arithmetic<T>::Multiply(s[m][2 * n], queries[m], keys[0], keys[1]);
        Arithmetic<T>::Multiply(s[m][2 * n + 1], queries[m], keys[2], keys[3]);
      }
    }
  }
}

// out += weights · V.
template <typename T, int kDim>
__device__ inline void AddValues(const float (&s)[PanelShape<kDim>::kRowTiles][8][4], uint32_t v,
                                 int lane, float (&out)[PanelShape<kDim>::kRowTiles][kDim / 8][4]) {
  using Shape = PanelShape<kDim>;
  constexpr int kRowTiles = Shape::kRowTiles;
  v += ChunkOffset<Shape::kChunks>(lane % 16, lane / 16);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t weights[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) PackWeights<T>(s[m], i, weights[m]);
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t values[4];
      LoadMatricesTransposed(values, NextChunks(v, n) + 16 * i * Shape::kRowBytes);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        Arithmetic<T>::Multiply(out[m][2 * n], weights[m], values[0], values[1]);
        Arithmetic<T>::Multiply(out[m][2 * n + 1], weights[m], values[2], values[3]);
      }
    }
  }
}

}  // namespace annulus::cuda
