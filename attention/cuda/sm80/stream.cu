// The stream kernel: up to 16 query rows (a decode step's heads of one KV head) against many
// blocks. Bound by memory: each of four warps reads every fourth block, 16 keys at a time, through
// its own pipeline of asynchronous copies, and waits for no other warp until the end, where the
// four merge.
#include "attention/cuda/load.cuh"
#include "attention/cuda/sm80/mma.cuh"
#include "attention/cuda/sm80/softmax.cuh"

namespace annulus::cuda {
namespace {

inline constexpr int kWarps = 4;
inline constexpr int kStageKeys = 16;
inline constexpr int kBlockStages = kBlockKeys / kStageKeys;

template <int kDim>
struct StreamShape {
  static constexpr int kStages = kDim > 128 ? 2 : 3;
  static constexpr int kChunks = kDim / 8;
  static constexpr int kRowBytes = 2 * kDim;
  static constexpr int kStageBytes = 2 * kStageKeys * kRowBytes;  // K and V
  static constexpr int kPipelineBytes = kWarps * kStages * kStageBytes;
  // What the warps give one another: max, sum and out of 16 rows each. It lies where the pipeline
  // was.
  static constexpr int kStateFloats = kStreamRows * (2 + kDim);
  static constexpr int kSharedBytes = kPipelineBytes + kStreamRows * kRowBytes + kSharedAlign;
  static_assert(kWarps * kStateFloats * 4 <= kPipelineBytes);
};

// Copies `keys` rows, at most kStageKeys, and zeros in the place of others and of dims that are
// not.
template <typename T, int kDim>
__device__ inline void LoadRows(const T* rows, int row_stride, int dim, int keys, int lane,
                                uint32_t to) {
  constexpr int kChunks = StreamShape<kDim>::kChunks;
  constexpr int kSteps = kStageKeys * kChunks / 32;
  if (keys >= kStageKeys && dim == kDim && kChunks <= 32) {
    constexpr int kRows = 32 / kChunks;  // by step
    const int row = lane / kChunks;
    const int chunk = lane % kChunks;
    const T* from = rows + int64_t{row} * row_stride + chunk * 8;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      CopyAsync16(to + ChunkOffset<kChunks>(row + step * kRows, chunk), from);
      from += kRows * row_stride;
    }
    return;
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int i = lane + 32 * step;
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    const bool there = row < keys && chunk * 8 < dim;
    CopyAsync16(to + ChunkOffset<kChunks>(row, chunk),
                there ? rows + int64_t{row} * row_stride + chunk * 8 : rows, there);
  }
}

// The warp's blocks of a segment, some stages ahead of those that are computed.
template <typename T, int kDim>
class Loader {
 public:
  // `blocks`: of this warp, the walk's at hand and every skip-th from it on.
  __device__ Loader(const Work& work, const Tile& tile, const Problem& problem, const Walk& walk,
                    int skip, int blocks, int lane)
      : work_(work),
        tile_(tile),
        problem_(problem),
        walk_(walk),
        skip_(skip),
        blocks_(blocks),
        lane_(lane) {
    Look();
  }

  // Starts the copies of the next stage; always a group of its own.
  __device__ void Start(uint32_t to) {
    if (stage_ == 0) {
      if (blocks_ == 0) return CommitCopies();
      --blocks_;
      k_ = static_cast<const T*>(page_.k);
      v_ = static_cast<const T*>(page_.v);
      k_stride_ = page_.k_row_stride;
      v_stride_ = page_.v_row_stride;
      const int64_t left = problem_.kv_tokens - int64_t{block_} * kBlockKeys;
      keys_ = left < kBlockKeys ? static_cast<int>(left) : kBlockKeys;
      if (k_ == nullptr) {
        ReportMissing(work_, tile_, block_);
        keys_ = 0;
      }
      Look();  // the next page is on its way while this one's rows are
    }
    LoadRows<T, kDim>(k_, k_stride_, problem_.head_dim, keys_, lane_, to);
    LoadRows<T, kDim>(v_, v_stride_, problem_.v_head_dim, keys_, lane_,
                      to + kStageKeys * StreamShape<kDim>::kRowBytes);
    CommitCopies();
    k_ += kStageKeys * k_stride_;
    v_ += kStageKeys * v_stride_;
    keys_ -= kStageKeys;
    stage_ = (stage_ + 1) % kBlockStages;
  }

 private:
  __device__ void Look() {
    if (blocks_ == 0) return;
    block_ = walk_.Block();
    page_ = *PageAt(tile_, problem_, block_);
    if (blocks_ > 1) walk_.Skip(skip_);
  }

  const Work& work_;
  const Tile& tile_;
  const Problem& problem_;
  Walk walk_;
  const int skip_;
  int blocks_;
  const int lane_;
  int block_ = 0;  // to come
  Page page_;
  const T* k_ = nullptr;  // at hand
  const T* v_ = nullptr;
  int k_stride_ = 0;
  int v_stride_ = 0;
  int keys_ = 0;
  int stage_ = 0;
};

template <typename T, int kDim>
__device__ inline void LoadQueries(const Problem& problem, const Half& half, uint32_t to) {
  constexpr int kChunks = StreamShape<kDim>::kChunks;
  const T* q = static_cast<const T*>(problem.q);
  for (int i = threadIdx.x; i < kStreamRows * kChunks; i += 32 * kWarps) {
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

// Merges the warps' states, by rows, and gives or keeps the result.
__device__ inline void EndTile(const Work& work, const Problem& problem, const Half& half,
                               const Segment& segment, const float* states, int state_floats) {
  __shared__ float ends[kStreamRows][kWarps + 1];  // the warps' weights, that of what was there
  __shared__ bool had[kStreamRows];                // whether anything was
  const int rows = half.tokens * half.heads;
  float* kept = work.states + segment.state;
  if (const int row = threadIdx.x; row < rows) {
    float top = kNoScore;
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, states[w * state_floats + row]);
    for (int w = 0; w < kWarps; ++w) {
      const float max = states[w * state_floats + row];
      ends[row][w] = max == kNoScore ? 0 : exp2f(max - top);
      sum += ends[row][w] * states[w * state_floats + kStreamRows + row];
    }
    float new_weight = 1;
    if (segment.state < 0) {
      const int64_t place = PlaceOf(problem, half, row);
      const RowEnd end = EndOf(problem.lse[place], top, sum);
      problem.lse[place] = end.lse;
      ends[row][kWarps] = end.old_weight;
      had[row] = end.has_old;
      new_weight = end.new_weight;
    } else {
      kept[row] = top;
      kept[rows + row] = sum;
      ends[row][kWarps] = 0;
      had[row] = false;
    }
    for (int w = 0; w < kWarps; ++w) ends[row][w] *= new_weight;
  }
  __syncthreads();
  const int dim = problem.v_head_dim;
  for (int i = threadIdx.x; i < rows * dim; i += 32 * kWarps) {
    const int row = i / dim;
    float* to = segment.state < 0 ? problem.out + PlaceOf(problem, half, row) * dim + i % dim
                                  : kept + 2 * rows + i;
    float value = had[row] ? ends[row][kWarps] * *to : 0;
    for (int w = 0; w < kWarps; ++w) {
      value += ends[row][w] * states[w * state_floats + 2 * kStreamRows + row * dim + i % dim];
    }
    *to = value;
  }
}

// One segment. All of the shared memory is free before and after it.
template <typename T, int kDim>
__device__ inline void StreamSegment(const Work& work, const Segment& segment,
                                     unsigned char* memory) {
  using Shape = StreamShape<kDim>;
  constexpr int kChunks = Shape::kChunks;
  constexpr int kStages = Shape::kStages;
  const Tile& tile = work.tiles[segment.tile];
  const Problem& problem = work.problems[segment.problem];
  const Half& half = tile.half[0];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  unsigned char* shared = memory + (AlignShared(SharedAddress(memory)) - SharedAddress(memory));
  const uint32_t pipeline = SharedAddress(shared) + warp * kStages * Shape::kStageBytes;
  const uint32_t q = SharedAddress(shared) + Shape::kPipelineBytes;

  // The first page is looked up while the queries are: each waits for loads that follow one
  // another.
  const int blocks = (segment.blocks - warp + kWarps - 1) / kWarps;
  Walk walk;
  walk.Begin(work, segment.run, segment.run_at);
  if (blocks > 0) walk.Skip(warp * segment.step);
  Loader<T, kDim> loader(work, tile, problem, walk, kWarps * segment.step, blocks, lane);
  LoadQueries<T, kDim>(problem, half, q);
  CommitCopies();
#pragma unroll
  for (int i = 0; i + 1 < kStages; ++i) loader.Start(pipeline + i * Shape::kStageBytes);
  WaitForCopies<kStages - 1>();
  __syncthreads();  // the queries are there
  // Kept in registers where there is room.
  constexpr bool kKeep = kDim <= 128;
  uint32_t queries[kKeep ? kDim / 16 : 1][4];
  const uint32_t q_first = q + ChunkOffset<kChunks>(lane % 16, lane / 16);
  const auto load_queries = [&](int d, uint32_t(&to)[4]) {
    LoadMatrices(to, NextChunks(q_first, d));
  };
#pragma unroll
  for (int d = 0; kKeep && d < kDim / 16; ++d) load_queries(d, queries[d]);

  float out[kDim / 8][4] = {};
  float max[2] = {kNoScore, kNoScore};
  float sum[2] = {};
  // Where in a stage the lane's first chunks lie.
  const uint32_t k_first = ChunkOffset<kChunks>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  const uint32_t v_first =
      kStageKeys * Shape::kRowBytes + ChunkOffset<kChunks>(lane % 16, lane / 16);
  int at = 0;  // of the pipeline's stages
  for (int step = 1; step <= blocks; ++step) {
    if (work.stop != nullptr && step % kStopPeriod == 0 && __any_sync(~0u, *work.stop)) break;
    const Cell<1> cell = walk.Now<1>();
    if (step < blocks) walk.Skip(kWarps * segment.step);
    const uint64_t existing = ExistingKeys(problem, cell.block);
    const bool masked = cell.sees[0] >= 0 || existing != ~uint64_t{0};
    uint64_t low = 0;
    uint64_t high = 0;
    if (masked) {
      low = RowMask(work, half, cell.sees[0], lane / 4, existing);
      high = RowMask(work, half, cell.sees[0], lane / 4 + 8, existing);
    }
    for (int i = 0; i < kBlockStages; ++i) {
      WaitForCopies<kStages - 2>();
      __syncwarp();  // this stage is there for all lanes, and none reads the one before
      loader.Start(pipeline + (at == 0 ? kStages - 1 : at - 1) * Shape::kStageBytes);
      const uint32_t k = pipeline + at * Shape::kStageBytes + k_first;
      const uint32_t v = pipeline + at * Shape::kStageBytes + v_first;
      at = at + 1 == kStages ? 0 : at + 1;
      float s[2][4] = {};
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        uint32_t keys[4];
        LoadMatrices(keys, NextChunks(k, d));
        uint32_t(&these)[4] = queries[kKeep ? d : 0];
        if constexpr (!kKeep) load_queries(d, these);
        Arithmetic<T>::Multiply(s[0], these, keys[0], keys[1]);
        Arithmetic<T>::Multiply(s[1], these, keys[2], keys[3]);
      }
      if (masked) {
        MaskScores<2>(s, low, high, lane);
        low >>= kStageKeys;
        high >>= kStageKeys;
      }
      Soften<T, 2, true>(s, problem.scale_log2, max, sum, out);
      uint32_t weights[4];
      PackWeights<T>(s, 0, weights);
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        uint32_t values[4];
        LoadMatricesTransposed(values, NextChunks(v, n));
        Arithmetic<T>::Multiply(out[2 * n], weights, values[0], values[1]);
        Arithmetic<T>::Multiply(out[2 * n + 1], weights, values[2], values[3]);
      }
    }
  }

  WaitForCopies<0>();
  __syncthreads();  // nobody copies to or reads from the pipelines any more
  float* states = reinterpret_cast<float*>(shared);
  const int state_floats = kStreamRows * (2 + problem.v_head_dim);
  Half all;  // all rows, so that none of the state is left as it was
  all.tokens = kStreamRows;
  all.heads = 1;
  const float top[2] = {max[0] * problem.scale_log2, max[1] * problem.scale_log2};
  const float whole[2] = {SumOfRow(sum[0]), SumOfRow(sum[1])};
  KeepRows(problem, all, states + warp * state_floats, kStreamRows, 0, lane / 4, lane, top, whole,
           out);
  __syncthreads();
  EndTile(work, problem, half, segment, states, state_floats);
  __syncthreads();
}

template <typename T, int kDim>
__global__ void __launch_bounds__(32 * kWarps, kDim > 128 ? 1 : 2)
    Stream(const Work work, int first) {
  extern __shared__ __align__(128) unsigned char shared[];
  LetNextKernelStart();
  const Lane lane = work.lanes[first + blockIdx.x];
  Segment segment = lane.start;
  for (int i = lane.first;;) {
    StreamSegment<T, kDim>(work, segment, shared);
    if (++i >= lane.end) return;
    segment = work.segments[i];
  }
}

template <typename T, int kDim>
cudaError_t Load(int* thread_blocks) {
  using Shape = StreamShape<kDim>;
  return LoadKernel(Stream<T, kDim>, 32 * kWarps, Shape::kSharedBytes, thread_blocks);
}

template <typename T>
cudaError_t LoadFor(int dim, int* thread_blocks) {
  if (dim <= 64) return Load<T, 64>(thread_blocks);
  return dim <= 128 ? Load<T, 128>(thread_blocks) : Load<T, 256>(thread_blocks);
}

template <typename T, int kDim>
cudaError_t Start(const Work& work, const Launch& launch, cudaStream_t stream) {
  using Shape = StreamShape<kDim>;
  Stream<T, kDim><<<launch.count, 32 * kWarps, Shape::kSharedBytes, stream>>>(work, launch.first);
  return cudaGetLastError();
}

template <typename T>
cudaError_t StartFor(const Work& work, const Launch& launch, cudaStream_t stream) {
  if (launch.dim <= 64) return Start<T, 64>(work, launch, stream);
  if (launch.dim <= 128) return Start<T, 128>(work, launch, stream);
  return Start<T, 256>(work, launch, stream);
}

}  // namespace

cudaError_t LoadStream(Format format, int dim, int* thread_blocks) {
  if (dim > kNarrowDimMax) return cudaErrorInvalidValue;
  return format == Format::kBF16 ? LoadFor<__nv_bfloat16>(dim, thread_blocks)
                                 : LoadFor<__half>(dim, thread_blocks);
}

cudaError_t LaunchStream(const Work& work, const Launch& launch, cudaStream_t stream) {
  return launch.format == Format::kBF16 ? StartFor<__nv_bfloat16>(work, launch, stream)
                                        : StartFor<__half>(work, launch, stream);
}

}  // namespace annulus::cuda
