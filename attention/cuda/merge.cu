// Merges the segments of tiles that were split. The lanes of a warp share out a row's dims. Few
// tiles have many segments each: a thread block does one row, and its warps share out the segments.
// Many tiles have few: each warp does a row of its own.
#include "attention/cuda/fragments.cuh"
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

// The softmax state of a row over some segments: max in units of log2, out not divided by sum. The
// dims of a lane are lane, lane + 32, …
template <int kDim>
struct State {
  static constexpr int kDimsPerLane = kDim / 32;

  float max = kNoScore;
  float sum = 0;
  float out[kDimsPerLane] = {};

  // Adds some others. One that has seen nothing has no weight, whatever its values are.
  template <int kCount>
  __device__ void Add(const State (&others)[kCount]) {
    float top = max;
    bool any = false;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const bool counts = others[n].sum != 0;
      top = counts ? fmaxf(top, others[n].max) : top;
      any |= counts;
    }
    if (!any) return;
    const float keep = Exp2(max - top);
    sum *= keep;
#pragma unroll
    for (int i = 0; i < kDimsPerLane; ++i) out[i] *= keep;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const State& other = others[n];
      const bool counts = other.sum != 0;
      const float weight = Exp2(other.max - top);
      sum += counts ? weight * other.sum : 0;
#pragma unroll
      for (int i = 0; i < kDimsPerLane; ++i) out[i] += counts ? weight * other.out[i] : 0;
    }
    max = top;
  }
};

// Where a row goes, and the lse that is there.
struct Target {
  float* out;
  float* lse;
  float old_lse;
};

// Gives the whole row of `dim` values, as a warp.
template <int kDim>
__device__ inline void GiveRow(const Target& target, const State<kDim>& state, int dim, int lane) {
  const RowEnd end = EndOf(target.old_lse, state.max, state.sum);
  if (!end.has_new) return;
  if (lane == 0) *target.lse = end.lse;
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i) {
    if (lane + 32 * i >= dim) break;
    float* to = target.out + lane + 32 * i;
    *to = (end.has_old ? end.old_weight * *to : 0) + end.new_weight * state.out[i];
  }
}

// kRowWarps warps share out the segments of a row: 1 or all of the thread block's.
template <int kRowWarps, int kDim>
__global__ void __launch_bounds__(32 * kWarps) Merge(const Work work, const int32_t* tile_ids) {
  static_assert(kRowWarps == 1 || kRowWarps == kWarps);
  // What was there before the kernel before is read before the wait, and is at hand when the states
  // are there.
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
  const int64_t place = PlaceOf(problem, *extent.half, extent.row);
  const Target target{problem.out + place * dim, problem.lse + place, problem.lse[place]};
  WaitForKernelBefore();
  // Some are read at once, since each read takes longer than all else.
  constexpr int kAtOnce = kDim <= kNarrowDimMax ? 5 : 3;
  State<kDim> state;
  for (int first = part; first < segments; first += kAtOnce * kRowWarps) {
    State<kDim> others[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int segment = first + i * kRowWarps;
      const float* from = states + min(segment, segments - 1) * state_floats;
      others[i].max = from[extent.at];
      const float sum = from[extent.rows + extent.at];
      others[i].sum = segment < segments ? sum : 0;
      from += 2 * extent.rows + extent.at * dim;
#pragma unroll
      for (int d = 0; d < kDim / 32; ++d) {
        if (lane + 32 * d < dim) others[i].out[d] = from[lane + 32 * d];
      }
    }
    state.Add(others);
  }
  if constexpr (kRowWarps > 1) {
    __shared__ State<kDim> parts[kWarps][32];
    parts[warp][lane] = state;
    __syncthreads();
    if (warp != 0) return;
    State<kDim> others[kWarps - 1];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) others[w - 1] = parts[w][lane];
    state.Add(others);
  }
  GiveRow(target, state, dim, lane);
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

template <int kDim>
cudaError_t StartFor(const Work& work, const int32_t* tile_ids, int count, int rows_max,
                     cudaStream_t stream) {
  return count >= kManyTiles ? Start<1, kDim>(work, tile_ids, count, rows_max, stream)
                             : Start<kWarps, kDim>(work, tile_ids, count, rows_max, stream);
}

}  // namespace

cudaError_t LoadMerge() {
  for (const auto kernel :
       {Merge<1, 128>, Merge<kWarps, 128>, Merge<1, kNarrowDimMax>, Merge<kWarps, kNarrowDimMax>,
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
  if (dim_max <= 128) return StartFor<128>(work, tile_ids, count, rows_max, stream);
  return dim_max <= kNarrowDimMax ? StartFor<kNarrowDimMax>(work, tile_ids, count, rows_max, stream)
                                  : StartFor<kHeadDimMax>(work, tile_ids, count, rows_max, stream);
}

}  // namespace annulus::cuda
