// Merges the segments of tiles that were split. The lanes of a warp share out a row's dims. Few
// tiles have many segments each: a thread block does one row, and its warps share out the segments.
// Many tiles have few: each warp does a row of its own.
#include "attention/cuda/device.cuh"
#include "attention/cuda/load.cuh"

namespace annulus::cuda {
namespace {

inline constexpr int kWarps = 8;
// So many tiles fill a GPU with a warp a row.
inline constexpr int kManyTiles = 256;

struct Extent {
  const Half* half;
  int row;   // of the half
  int at;    // of the tile
  int rows;  // of the tile
};

__device__ inline Extent ExtentOf(const Tile& tile, int at) {
  Extent extent{&tile.half[0], at, at, 0};
  int first = 0;
  for (const Half& half : tile.half) {
    const int rows = half.tokens * half.heads;
    if (at >= first && at < first + rows) {
      extent.half = &half;
      extent.row = at - first;
    }
    first += rows;
  }
  extent.rows = first;
  return extent;
}

// The softmax state of a row over some segments: max in units of log2, out not divided by sum.
template <int kDim>
struct State {
  static constexpr int kDimsPerLane = kDim / 32;

  float max = kNoScore;
  float sum = 0;
  float out[kDimsPerLane] = {};

  // The dims of a lane are lane, lane + 32, …: `dim` of them all.
  __device__ void Add(float other_max, float other_sum, const float* other_out, int dim, int lane) {
    if (other_sum == 0) return;
    const float top = fmaxf(max, other_max);
    const float a = exp2f(max - top);
    const float b = exp2f(other_max - top);
    sum = a * sum + b * other_sum;
    max = top;
#pragma unroll
    for (int i = 0; i < kDimsPerLane; ++i) {
      if (lane + 32 * i < dim) out[i] = a * out[i] + b * other_out[lane + 32 * i];
    }
  }
};

// Gives the whole row to out and lse, as a warp.
template <int kDim>
__device__ inline void GiveRow(const Problem& problem, const Extent& extent,
                               const State<kDim>& state, int lane) {
  const int dim = problem.v_head_dim;
  const int64_t place = PlaceOf(problem, *extent.half, extent.row);
  const RowEnd end = EndOf(problem.lse[place], state.max, state.sum);
  __syncwarp();  // all have read lse
  if (!end.has_new) return;
  if (lane == 0) problem.lse[place] = end.lse;
  for (int i = 0; i < kDim / 32 && lane + 32 * i < dim; ++i) {
    float* to = problem.out + place * dim + lane + 32 * i;
    *to = (end.has_old ? end.old_weight * *to : 0) + end.new_weight * state.out[i];
  }
}

// kRowWarps warps share out the segments of a row: 1 or all of the thread block's.
template <int kRowWarps, int kDim>
__global__ void __launch_bounds__(32 * kWarps) Merge(const Work work, const int32_t* tile_ids) {
  static_assert(kRowWarps == 1 || kRowWarps == kWarps);
  // What the host wrote is read before the wait, and is at hand when the states are there.
  const Tile& tile = work.tiles[tile_ids[blockIdx.x]];
  const Problem& problem = work.problems[tile.problem];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int part = warp % kRowWarps;
  const Extent extent =
      ExtentOf(tile, static_cast<int>(blockIdx.y) * (kWarps / kRowWarps) + warp / kRowWarps);
  if (extent.at >= extent.rows) return;  // with several warps a row, all of them
  const int dim = problem.v_head_dim;
  const int segments = tile.segments;
  const float* states = work.states + tile.state_first;
  const int64_t state_floats = int64_t{extent.rows} * (2 + dim);
  WaitForKernelBefore();
  State<kDim> state;
#pragma unroll 4
  for (int i = part; i < segments; i += kRowWarps) {
    const float* from = states + i * state_floats;
    state.Add(from[extent.at], from[extent.rows + extent.at],
              from + 2 * extent.rows + extent.at * dim, dim, lane);
  }
  if constexpr (kRowWarps > 1) {
    __shared__ float maxima[kWarps];
    __shared__ float sums[kWarps];
    __shared__ float outs[kWarps][kDim];
    if (lane == 0) {
      maxima[warp] = state.max;
      sums[warp] = state.sum;
    }
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) outs[warp][lane + 32 * i] = state.out[i];
    __syncthreads();
    if (warp != 0) return;
    for (int w = 1; w < kWarps; ++w) state.Add(maxima[w], sums[w], outs[w], dim, lane);
  }
  GiveRow(problem, extent, state, lane);
}

template <int kRowWarps, int kDim>
cudaError_t Start(const Work& work, const int32_t* tile_ids, int count, int rows_max,
                  cudaStream_t stream) {
  constexpr int kRows = kWarps / kRowWarps;  // of a thread block
  cudaFuncAttributes code;
  const cudaError_t error = cudaFuncGetAttributes(&code, Merge<kRowWarps, kDim>);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim =
      dim3(static_cast<unsigned>(count), static_cast<unsigned>((rows_max + kRows - 1) / kRows));
  config.blockDim = dim3(32 * kWarps);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = code.ptxVersion >= 90 ? 1 : 0;  // else WaitForKernelBefore is nothing
  return cudaLaunchKernelEx(&config, Merge<kRowWarps, kDim>, work, tile_ids);
}

}  // namespace

cudaError_t LoadMerge() {
  for (const auto kernel : {Merge<1, kNarrowDimMax>, Merge<kWarps, kNarrowDimMax>,
                            Merge<1, kHeadDimMax>, Merge<kWarps, kHeadDimMax>}) {
    int thread_blocks = 0;
    const cudaError_t error = LoadKernel(kernel, 32 * kWarps, 0, &thread_blocks);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t LaunchMerge(const Work& work, const int32_t* tile_ids, int count, int rows_max,
                        int dim_max, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const bool many = count >= kManyTiles;
  if (dim_max <= kNarrowDimMax) {
    return many ? Start<1, kNarrowDimMax>(work, tile_ids, count, rows_max, stream)
                : Start<kWarps, kNarrowDimMax>(work, tile_ids, count, rows_max, stream);
  }
  return many ? Start<1, kHeadDimMax>(work, tile_ids, count, rows_max, stream)
              : Start<kWarps, kHeadDimMax>(work, tile_ids, count, rows_max, stream);
}

}  // namespace annulus::cuda
