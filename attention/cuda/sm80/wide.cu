// The wide kernel: up to 64 query rows of head dims beyond 256 (latent heads above all, few rows
// and many) against 32 keys after another, on the matrix units. Four warps of 16 rows would not
// hold their rows' values: eight share them out by columns, and both that have a row score it.
#include "attention/cuda/load.cuh"
#include "attention/cuda/sm80/ahead.cuh"
#include "attention/cuda/sm80/mma.cuh"
#include "attention/cuda/sm80/softmax.cuh"

namespace annulus::cuda {
namespace {

inline constexpr int kDim = kHeadDimMax;
inline constexpr int kThreads = 256;
inline constexpr int kStepKeys = 32;
inline constexpr int kSteps = kBlockKeys / kStepKeys;  // of a block
inline constexpr int kChunks = kDim / 8;
inline constexpr int kRowBytes = 2 * kDim;
inline constexpr int kColumns = kDim / 2;  // of a warp's values
inline constexpr int kTiles = kColumns / 8;
inline constexpr int kSharedBytes = (kPanelRows + 2 * kStepKeys) * kRowBytes + kSharedAlign;
static_assert(kRowBytes % 128 == 0);

// From the address of a row's chunk c (0 or 1) to that of its chunk 2·d + c: rows begin at a
// multiple of 128 bytes, within which chunks are XORed.
__device__ inline uint32_t ChunksAt(uint32_t address, int d) {
  return (address ^ static_cast<uint32_t>(32 * (d % 4))) + 128 * (d / 4);
}

template <typename T>
__device__ inline void LoadQueries(const Problem& problem, const Half& half, uint32_t to) {
  const T* q = static_cast<const T*>(problem.q);
  for (int i = threadIdx.x; i < kPanelRows * kChunks; i += kThreads) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    const bool there = row < half.tokens * half.heads && chunk * 8 < problem.head_dim;
    const T* from = q;
    if (there) {
      from += (half.row_first + row / half.heads) * problem.q_token_stride +
              (half.head_first + row % half.heads) * problem.q_head_stride + chunk * 8;
    }
    CopyAsync16(to + ChunkOffset<kChunks>(row, chunk), from, there);
  }
}

// `keys` rows, and zeros in the place of others and of dims that are not.
template <typename T>
__device__ inline void LoadKeys(const void* rows, int row_stride, int first, int dim, int keys,
                                uint32_t to) {
  const T* from = static_cast<const T*>(rows);
  if (rows != nullptr) from += int64_t{first} * row_stride;
#pragma unroll 3
  for (int i = threadIdx.x; i < kStepKeys * kChunks; i += kThreads) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    const bool there = rows != nullptr && first + row < keys && chunk * 8 < dim;
    CopyAsync16(to + ChunkOffset<kChunks>(row, chunk),
                there ? from + int64_t{row} * row_stride + chunk * 8 : from, there);
  }
}

template <typename T>
__device__ inline void Score(uint32_t q, uint32_t k, int lane, float (&s)[4][4]) {
#pragma unroll 4
  for (int d = 0; d < kDim / 16; ++d) {
    uint32_t queries[4];
    LoadMatrices(queries, ChunksAt(q, d));
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      uint32_t keys[4];
      LoadMatrices(keys, ChunksAt(k, d) + 16 * n * kRowBytes);
      Arithmetic<T>::Multiply(s[2 * n], queries, keys[0], keys[1]);
      Arithmetic<T>::Multiply(s[2 * n + 1], queries, keys[2], keys[3]);
    }
  }
}

// From the address of column 0 to what AddValues is given for a warp's columns.
static_assert(kColumns / 16 % 4 == 2);
__device__ inline uint32_t ColumnsAt(uint32_t address, int column) {
  return column == 0 ? address : ChunksAt(address, kColumns / 16);
}

// `v`: of the warp's columns, the second half of which begin in the middle of 128 bytes.
template <typename T>
__device__ inline void AddValues(const float (&s)[4][4], uint32_t v, int column,
                                 float (&out)[kTiles][4]) {
  const uint32_t carry = column == 0 ? 0 : 128;
#pragma unroll
  for (int i = 0; i < kStepKeys / 16; ++i) {
    uint32_t weights[4];
    PackWeights<T>(s, i, weights);
#pragma unroll
    for (int n = 0; n < kTiles / 2; ++n) {
      uint32_t values[4];
      LoadMatricesTransposed(values, ChunksAt(v, n) + (n % 4 < 2 ? 0 : carry) + 16 * i * kRowBytes);
      Arithmetic<T>::Multiply(out[2 * n], weights, values[0], values[1]);
      Arithmetic<T>::Multiply(out[2 * n + 1], weights, values[2], values[3]);
    }
  }
}

// As a whole thread block: both warps of a row look at lse before one of them writes it.
__device__ inline void End(const Work& work, const Problem& problem, const Half& half,
                           const Segment& segment, int row, int column, int lane,
                           const float (&max)[2], const float (&sum)[2],
                           const float (&out)[kTiles][4]) {
  const int rows = half.tokens * half.heads;
  const bool leads = column == 0 && lane % 4 == 0;
  if (segment.state >= 0) {
    float* state = work.states + segment.state;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row + 8 * i;
      if (r >= rows) continue;
      if (leads) {
        state[r] = max[i];
        state[rows + r] = sum[i];
      }
      KeepColumns(problem, state + 2 * rows + r * problem.v_head_dim, column, lane, i, out);
    }
    return;
  }
  int64_t place[2];
  RowEnd end[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    place[i] = row + 8 * i < rows ? PlaceOf(problem, half, row + 8 * i) : -1;
    end[i] = EndOf(place[i] < 0 ? 0 : problem.lse[place[i]], max[i], sum[i]);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (place[i] < 0 || !end[i].has_new) continue;
    if (leads) problem.lse[place[i]] = end[i].lse;
    GiveColumns(problem, place[i], column, lane, end[i], i, out);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) Wide(const Work work, int first) {
  extern __shared__ unsigned char shared[];
  __shared__ Ahead<1> ahead;
  const uint32_t q = AlignShared(SharedAddress(shared));
  const uint32_t k = q + kPanelRows * kRowBytes;
  const uint32_t v = k + kStepKeys * kRowBytes;

  const Segment segment = work.segments[first + blockIdx.x];
  const Tile& tile = work.tiles[segment.tile];
  const Problem& problem = work.problems[tile.problem];
  const Half& half = tile.half[0];
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 64 * 16;
  const int row = warp_row + lane / 4;
  const int column = threadIdx.x / 32 % 2 * kColumns;
  const uint32_t q_first = q + ChunkOffset<kChunks>(warp_row + lane % 16, lane / 16);
  const uint32_t k_first = k + ChunkOffset<kChunks>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  const uint32_t v_first = ColumnsAt(v + ChunkOffset<kChunks>(lane % 16, lane / 16), column);

  float out[kTiles][4] = {};
  float max[2] = {kNoScore, kNoScore};
  float sum[2] = {};

  if (threadIdx.x == 0) {
    ahead.walk.Begin(work, segment.run, segment.run_at);
    for (int i = 0; i < min(2, segment.blocks); ++i) Fetch(tile, problem, i, ahead);
  }
  LoadQueries<T>(problem, half, q);
  CommitCopies();
  WaitForCopies<0>();
  __syncthreads();
  const auto load_k = [&](int step) {
    const int slot = step / kSteps % Ahead<1>::kSlots;
    const Page& page = ahead.pages[slot];
    LoadKeys<T>(page.k, page.k_row_stride, step % kSteps * kStepKeys, problem.head_dim,
                KeysOf(problem, ahead.cells[slot].block), k);
  };
  load_k(0);
  CommitCopies();
  const int steps = segment.blocks * kSteps;
  for (int step = 0; step < steps; ++step) {
    const int at = step / kSteps;
    const int slot = at % Ahead<1>::kSlots;
    const int begin = step % kSteps * kStepKeys;
    const int sees = ahead.cells[slot].sees[0];
    const int block = ahead.cells[slot].block;
    WaitForCopies<0>();
    __syncthreads();  // K is there, and nobody reads the V before
    if (work.stop != nullptr && (step + 1) % kStopPeriod == 0 &&
        __syncthreads_or(threadIdx.x == 0 && *work.stop)) {
      return;
    }
    LoadKeys<T>(ahead.pages[slot].v, ahead.pages[slot].v_row_stride, begin, problem.v_head_dim,
                KeysOf(problem, block), v);
    if (threadIdx.x == 0 && begin == 0) {
      if (ahead.pages[slot].k == nullptr) ReportMissing(work, tile, block);
      if (at + 2 < segment.blocks) Fetch(tile, problem, at + 2, ahead);
    }
    CommitCopies();

    float s[4][4] = {};
    Score<T>(q_first, k_first, lane, s);
    const uint64_t existing = ExistingKeys(problem, block);
    if (sees >= 0 || existing != ~uint64_t{0}) {
      MaskScores<4>(s, RowMask(work, half, sees, row, existing) >> begin,
                    RowMask(work, half, sees, row + 8, existing) >> begin, lane);
    }
    WaitForCopies<0>();
    __syncthreads();  // V is there, and nobody reads K any more
    if (step + 1 < steps) load_k(step + 1);
    CommitCopies();
    Soften<T, 4, false>(s, problem.scale_log2, max, sum, out);
    AddValues<T>(s, v_first, column, out);
  }
  const float top[2] = {max[0] * problem.scale_log2, max[1] * problem.scale_log2};
  const float whole[2] = {SumOfRow(sum[0]), SumOfRow(sum[1])};
  End(work, problem, half, segment, row, column, lane, top, whole, out);
}

}  // namespace

cudaError_t LoadWide(Format format, int dim, int* thread_blocks) {
  if (dim <= kNarrowDimMax) return cudaErrorInvalidValue;
  return format == Format::kBF16
             ? LoadKernel(Wide<__nv_bfloat16>, kThreads, kSharedBytes, thread_blocks)
             : LoadKernel(Wide<__half>, kThreads, kSharedBytes, thread_blocks);
}

cudaError_t LaunchWide(const Work& work, const Launch& launch, cudaStream_t stream) {
  if (launch.format == Format::kBF16) {
    Wide<__nv_bfloat16><<<launch.count, kThreads, kSharedBytes, stream>>>(work, launch.first);
  } else {
    Wide<__half><<<launch.count, kThreads, kSharedBytes, stream>>>(work, launch.first);
  }
  return cudaGetLastError();
}

}  // namespace annulus::cuda
