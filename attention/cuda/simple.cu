// The simple kernel: any format and any scale, in f32 throughout. A warp takes a query row at a
// time: each lane scores two keys of a block, then holds every 32nd dim of the values.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/device.cuh"
#include "attention/cuda/load.cuh"

namespace annulus::cuda {
namespace {

inline constexpr int kWarps = 8;
inline constexpr int kDimsPerLane = kHeadDimMax / 32;

__device__ inline float At(const void* data, Format format, int64_t i) {
  switch (format) {
    case Format::kF16:
      return __half2float(static_cast<const __half*>(data)[i]);
    case Format::kBF16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

__device__ inline float MaxOfWarp(float x) {
  for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
  return x;
}
__device__ inline float SumOfWarp(float x) {
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  return x;
}

struct RowState {
  float max = kNoScore;
  float sum = 0;
  float out[kDimsPerLane] = {};
};

// One block of one row. The sums of a block are taken on their own: a single f32 accumulator over a
// million keys errs by 2e-5.
__device__ inline void AttendBlock(const Problem& problem, const Page& page, uint64_t mask,
                                   const float* q, int lane, RowState& state) {
  float s[2] = {kNoScore, kNoScore};
  bool lost = false;  // to f32's range
  for (int i = 0; i < 2; ++i) {
    const int key = lane + 32 * i;
    if (!((mask >> key) & 1)) continue;
    float dot = 0;
    for (int d = 0; d < problem.head_dim; ++d) {
      dot += q[d] * At(page.k, problem.kv_format, int64_t{key} * page.k_row_stride + d);
    }
    s[i] = dot * problem.scale_log2;
    lost |= !isfinite(s[i]);
  }
  if (__any_sync(~0u, lost)) {
    state.sum = NAN;  // for good
    return;
  }
  const float top = fmaxf(state.max, MaxOfWarp(fmaxf(s[0], s[1])));
  const float shrink = exp2f(state.max - top);
  float weights[2];
  for (int i = 0; i < 2; ++i) weights[i] = s[i] == kNoScore ? 0 : exp2f(s[i] - top);
  float add[kDimsPerLane] = {};
  for (int key = 0; key < kBlockKeys; ++key) {
    const float weight = __shfl_sync(~0u, weights[key / 32], key % 32);
    if (!((mask >> key) & 1)) continue;
#pragma unroll
    for (int i = 0; i < kDimsPerLane; ++i) {
      const int d = lane + 32 * i;
      if (d >= problem.v_head_dim) break;
      add[i] += weight * At(page.v, problem.kv_format, int64_t{key} * page.v_row_stride + d);
    }
  }
  state.max = top;
  state.sum = state.sum * shrink + SumOfWarp(weights[0] + weights[1]);
#pragma unroll
  for (int i = 0; i < kDimsPerLane; ++i) state.out[i] = state.out[i] * shrink + add[i];
}

__device__ inline void EndRow(const Work& work, const Problem& problem, const Half& half,
                              const Segment& segment, int row, int lane, const RowState& state) {
  const int rows = half.tokens * half.heads;
  const int dim = problem.v_head_dim;
  if (segment.state >= 0) {
    float* kept = work.states + segment.state;
    if (lane == 0) {
      kept[row] = state.max;
      kept[rows + row] = state.sum;
    }
    for (int i = 0; i < kDimsPerLane && lane + 32 * i < dim; ++i) {
      kept[2 * rows + row * dim + lane + 32 * i] = state.out[i];
    }
    return;
  }
  const int64_t place = PlaceOf(problem, half, row);
  const RowEnd end = EndOf(problem.lse[place], state.max, state.sum);
  __syncwarp();  // all have read lse
  if (!end.has_new) return;
  if (lane == 0) problem.lse[place] = end.lse;
  for (int i = 0; i < kDimsPerLane && lane + 32 * i < dim; ++i) {
    float* to = problem.out + place * dim + lane + 32 * i;
    *to = (end.has_old ? end.old_weight * *to : 0) + end.new_weight * state.out[i];
  }
}

__global__ void __launch_bounds__(32 * kWarps) Simple(const Work work, int first) {
  __shared__ float queries[kWarps][kHeadDimMax];
  const Segment segment = work.segments[first + blockIdx.x];
  const Tile& tile = work.tiles[segment.tile];
  const Problem& problem = work.problems[tile.problem];
  const Half half = tile.half[0];
  const int lane = threadIdx.x % 32;
  float* q = queries[threadIdx.x / 32];
  for (int row = threadIdx.x / 32; row < half.tokens * half.heads; row += kWarps) {
    const int64_t from = (half.row_first + row / half.heads) * problem.q_token_stride +
                         (half.head_first + row % half.heads) * problem.q_head_stride;
    __syncwarp();
    for (int d = lane; d < problem.head_dim; d += 32) {
      q[d] = At(problem.q, problem.q_format, from + d);
    }
    __syncwarp();
    RowState state;
    Walk walk;
    walk.Begin(work, segment.run, segment.run_at);
    for (int step = 1; step <= segment.blocks; ++step) {
      if (step != 1) walk.Skip(1);
      const Cell<1> cell = walk.Now<1>();
      if (work.stop != nullptr && step % kStopPeriod == 0 && __any_sync(~0u, *work.stop)) return;
      const uint64_t mask =
          RowMask(work, half, cell.sees[0], row, ExistingKeys(problem, cell.block));
      if (mask == 0) continue;
      const Page page = *PageAt(tile, problem, cell.block);
      if (page.k == nullptr) return ReportMissing(work, tile, cell.block);
      AttendBlock(problem, page, mask, q, lane, state);
    }
    EndRow(work, problem, half, segment, row, lane, state);
  }
}

}  // namespace

cudaError_t LoadSimple(Format, int, int* thread_blocks) {
  return LoadKernel(Simple, 32 * kWarps, 0, thread_blocks);
}

cudaError_t LaunchSimple(const Work& work, const Launch& launch, cudaStream_t stream) {
  Simple<<<launch.count, 32 * kWarps, 0, stream>>>(work, launch.first);
  return cudaGetLastError();
}

}  // namespace annulus::cuda
