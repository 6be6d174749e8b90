// The softmax over scores in mma accumulators, shared by the panel and the stream kernels.
#pragma once

#include <cstdint>

#include "attention/cuda/device.cuh"
#include "attention/cuda/mma.cuh"

namespace annulus::cuda {

// The scores of 16 rows × 8·kTiles keys, as one warp's accumulators hold them: c[n][0..1] are the
// keys 8n + 2·(lane % 4) + {0, 1} of row lane / 4, c[n][2..3] those of row lane / 4 + 8.
template <int kTiles>
using Scores = float[kTiles][4];

// Scores of keys that the row does not see become −inf. `low` and `high` are what the two rows see
// of the warp's keys, bit 0 being its first.
template <int kTiles>
__device__ inline void MaskScores(Scores<kTiles>& s, uint64_t low, uint64_t high, int lane) {
  low >>= 2 * (lane % 4);
  high >>= 2 * (lane % 4);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (!((low >> (8 * n)) & 1)) s[n][0] = kNoScore;
    if (!((low >> (8 * n)) & 2)) s[n][1] = kNoScore;
    if (!((high >> (8 * n)) & 1)) s[n][2] = kNoScore;
    if (!((high >> (8 * n)) & 2)) s[n][3] = kNoScore;
  }
}

// One step of the online softmax: turns scores into weights relative to the new maximum, rescales
// sums and accumulators. max is that of the raw scores; sum is this thread's part. kRare: where few
// steps bring a new maximum to any of the warp's rows, the others are spared the rescaling.
template <int kTiles, bool kRare, int kOuts>
__device__ inline void Soften(Scores<kTiles>& s, float scale_log2, float (&max)[2], float (&sum)[2],
                              float (&out)[kOuts][4]) {
  float top[2] = {max[0], max[1]};
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    top[0] = fmaxf(top[0], fmaxf(s[n][0], s[n][1]));
    top[1] = fmaxf(top[1], fmaxf(s[n][2], s[n][3]));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    top[i] = MaxOfRow(top[i]);
    // A row that has seen nothing keeps out and sum at 0: 2^(−inf − 0).
    const float base = top[i] == kNoScore ? 0 : top[i] * scale_log2;
    const float shrink = Exp2(max[i] * scale_log2 - base);
    const bool rescale = !kRare || __any_sync(~0u, top[i] != max[i]);
    max[i] = top[i];
    if (rescale) {
      sum[i] *= shrink;
#pragma unroll
      for (int n = 0; n < kOuts; ++n) {
        out[n][2 * i] *= shrink;
        out[n][2 * i + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 2 * i; j < 2 * i + 2; ++j) {
        s[n][j] = Exp2(s[n][j] * scale_log2 - base);
        sum[i] += s[n][j];
      }
    }
  }
}

// The weights of keys [16·i, 16·i + 16), rounded, as the left operand of a multiplication.
template <typename T, int kTiles>
__device__ inline void PackWeights(const Scores<kTiles>& s, int i, uint32_t (&to)[4]) {
  to[0] = Arithmetic<T>::Pack(s[2 * i][0], s[2 * i][1]);
  to[1] = Arithmetic<T>::Pack(s[2 * i][2], s[2 * i][3]);
  to[2] = Arithmetic<T>::Pack(s[2 * i + 1][0], s[2 * i + 1][1]);
  to[3] = Arithmetic<T>::Pack(s[2 * i + 1][2], s[2 * i + 1][3]);
}

// Gives the rows `row` and `row + 8` of a half to out and lse, as a whole warp. sum is that of the
// whole row.
template <int kOuts>
__device__ inline void GiveRows(const Problem& problem, const Half& half, int row, int lane,
                                const float (&max)[2], const float (&sum)[2],
                                const float (&out)[kOuts][4]) {
  const int rows = half.tokens * half.heads;
  RowEnd end[2];
  int64_t place[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    place[i] = row + 8 * i < rows ? PlaceOf(problem, half, row + 8 * i) : -1;
    end[i] = EndOf(place[i] < 0 ? 0 : problem.lse[place[i]], max[i] * problem.scale_log2, sum[i]);
  }
  __syncwarp();  // all have read lse
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (place[i] < 0 || end[i].new_weight == 0) continue;
    if (lane % 4 == 0) problem.lse[place[i]] = end[i].lse;
    float* to = problem.out + place[i] * problem.v_head_dim;
#pragma unroll
    for (int n = 0; n < kOuts; ++n) {
      const int c = 8 * n + 2 * (lane % 4);
      if (c >= problem.v_head_dim) continue;
      float2 value = {out[n][2 * i] * end[i].new_weight, out[n][2 * i + 1] * end[i].new_weight};
      if (end[i].old_weight != 0) {
        const float2 old = *reinterpret_cast<const float2*>(to + c);
        value.x += old.x * end[i].old_weight;
        value.y += old.y * end[i].old_weight;
      }
      *reinterpret_cast<float2*>(to + c) = value;
    }
  }
}

// Keeps the same rows as a segment's state; `base` is where they begin among the tile's `rows`.
template <int kOuts>
__device__ inline void KeepRows(const Problem& problem, const Half& half, float* state, int rows,
                                int base, int row, int lane, const float (&max)[2],
                                const float (&sum)[2], const float (&out)[kOuts][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + 8 * i;
    if (r >= half.tokens * half.heads) continue;
    if (lane % 4 == 0) {
      state[base + r] = max[i] * problem.scale_log2;
      state[rows + base + r] = sum[i];
    }
    float* to = state + 2 * rows + int64_t{base + r} * problem.v_head_dim;
#pragma unroll
    for (int n = 0; n < kOuts; ++n) {
      const int c = 8 * n + 2 * (lane % 4);
      if (c < problem.v_head_dim) {
        *reinterpret_cast<float2*>(to + c) = {out[n][2 * i], out[n][2 * i + 1]};
      }
    }
  }
}

}  // namespace annulus::cuda
