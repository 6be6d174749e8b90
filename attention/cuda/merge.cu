// Merges the segments of tiles that were split: one thread block per row.
#include "attention/cuda/device.cuh"

namespace annulus::cuda {
namespace {

inline constexpr int kThreads = 128;
inline constexpr int kDimsPerThread = kHeadDimMax / kThreads;

struct Extent {
  const Half* half;
  int row;   // of the half
  int at;    // of the tile
  int rows;  // of the tile
};

__device__ inline Extent ExtentOf(const Tile& tile, int at) {
  const int first = tile.half[0].tokens * tile.half[0].heads;
  const int rows = first + tile.half[1].tokens * tile.half[1].heads;
  if (at < first) return {&tile.half[0], at, at, rows};
  return {&tile.half[1], at - first, at, rows};
}

__device__ inline float Reduce(float x, float* room, bool is_max) {
  for (int i = 16; i > 0; i /= 2) {
    const float other = __shfl_xor_sync(~0u, x, i);
    x = is_max ? fmaxf(x, other) : x + other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  x = room[0];
  for (int i = 1; i < kThreads / 32; ++i) x = is_max ? fmaxf(x, room[i]) : x + room[i];
  return x;
}

__global__ void __launch_bounds__(kThreads) MergeRow(const Work work, const int32_t* tile_ids) {
  __shared__ float room[kThreads / 32];
  __shared__ float weights[kThreads];
  __shared__ float old_lse;
  const Tile& tile = work.tiles[tile_ids[blockIdx.x]];
  const Problem& problem = work.problems[tile.problem];
  const Extent extent = ExtentOf(tile, static_cast<int>(blockIdx.y));
  if (extent.at >= extent.rows) return;
  const int dim = problem.v_head_dim;
  const float* states = work.states + tile.state_first;
  const int64_t state_floats = int64_t{extent.rows} * (2 + dim);
  float max = kNoScore;
  float sum = 0;
  float out[kDimsPerThread] = {};
  for (int first = 0; first < tile.segments; first += kThreads) {
    const int mine = first + static_cast<int>(threadIdx.x);
    const float* state = nullptr;
    if (mine < tile.segments) state = states + mine * state_floats;
    const float my_max = state == nullptr ? kNoScore : state[extent.at];
    const float top = fmaxf(max, Reduce(my_max, room, true));
    if (top == kNoScore) continue;
    const float shrink = exp2f(max - top);
    const float weight = my_max == kNoScore ? 0 : exp2f(my_max - top);
    weights[threadIdx.x] = weight;
    const float add = weight == 0 ? 0 : weight * state[extent.rows + extent.at];
    sum = sum * shrink + Reduce(add, room, false);
    max = top;
    for (int i = 0; i < kDimsPerThread; ++i) out[i] *= shrink;
    const int count = min(kThreads, tile.segments - first);
    for (int j = 0; j < count; ++j) {
      const float* from =
          states + (first + j) * state_floats + 2 * extent.rows + int64_t{extent.at} * dim;
      for (int i = 0; i < kDimsPerThread; ++i) {
        const int c = static_cast<int>(threadIdx.x) + kThreads * i;
        if (c < dim) out[i] += weights[j] * from[c];
      }
    }
    __syncthreads();  // the weights are read
  }
  const int64_t place = PlaceOf(problem, *extent.half, extent.row);
  if (threadIdx.x == 0) old_lse = problem.lse[place];
  __syncthreads();
  const RowEnd end = EndOf(old_lse, max, sum);
  if (end.new_weight == 0) return;
  if (threadIdx.x == 0) problem.lse[place] = end.lse;
  for (int i = 0; i < kDimsPerThread; ++i) {
    const int c = static_cast<int>(threadIdx.x) + kThreads * i;
    if (c >= dim) continue;
    float* to = problem.out + place * dim + c;
    *to = (end.old_weight == 0 ? 0 : end.old_weight * *to) + end.new_weight * out[i];
  }
}

}  // namespace

cudaError_t LaunchMerge(const Work& work, const int32_t* tile_ids, int count,
                        cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(count), 2 * kPanelRows);
  MergeRow<<<grid, kThreads, 0, stream>>>(work, tile_ids);
  return cudaGetLastError();
}

}  // namespace annulus::cuda
