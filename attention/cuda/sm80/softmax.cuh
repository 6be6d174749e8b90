// The online softmax of the panel and the stream kernels.
#pragma once

#include <cstdint>

#include "attention/cuda/fragments.cuh"

namespace annulus::cuda {

// One step of the online softmax: turns scores into weights relative to the new maximum, rescales
// sums and accumulators. max is that of the raw scores; sum is this thread's part, for good NaN
// once a score is −inf. kRare: where few steps bring a new maximum to any of the warp's rows, the
// others are spared the rescaling.
template <typename T, int kTiles, bool kRare, int kOuts>
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
    // A row that has seen nothing keeps out and sum at 0: 2^(kUnseen · scale − 0).
    // Products are rounded before the difference, as else huge ones would not cancel.
    const float base = top[i] > kUnseen ? top[i] * scale_log2 : 0;
    const float shrink = Exp2(__fadd_rn(__fmul_rn(max[i], scale_log2), -base));
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
    if constexpr (kMayOverflow<T>) {
      float least = kUnseen;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) least = fminf(least, fminf(s[n][2 * i], s[n][2 * i + 1]));
      if (least < kUnseen) sum[i] = NAN;
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int j = 2 * i; j < 2 * i + 2; ++j) {
        s[n][j] = Exp2(__fadd_rn(__fmul_rn(s[n][j], scale_log2), -base));
        sum[i] += s[n][j];
      }
    }
  }
}

}  // namespace annulus::cuda
