// The panel kernel: up to 128 query rows (two halves) against one 64-token block after another, on
// the matrix units. One K and one V block in shared memory: V comes while scores are computed, the
// next K while values are added.
#include "attention/cuda/load.cuh"
#include "attention/cuda/sm80/ahead.cuh"
#include "attention/cuda/sm80/panel.cuh"
#include "attention/cuda/sm80/softmax.cuh"

namespace annulus::cuda {
namespace {

template <typename T, int kDim>
__device__ inline void LoadQueries(const Problem& problem, const Tile& tile, uint32_t to) {
  using Shape = PanelShape<kDim>;
  const T* q = static_cast<const T*>(problem.q);
  for (int i = threadIdx.x; i < 2 * kPanelRows * Shape::kChunks; i += Shape::kThreads) {
    const int row = i / Shape::kChunks;
    const int chunk = i % Shape::kChunks;
    const Half& half = tile.half[row / kPanelRows];
    const int r = row % kPanelRows;
    const bool there = r < half.tokens * half.heads && chunk * 8 < problem.head_dim;
    const T* from = q;
    if (there) {
      from += (half.row_first + r / half.heads) * problem.q_token_stride +
              (half.head_first + r % half.heads) * problem.q_head_stride + chunk * 8;
    }
    CopyAsync16(to + ChunkOffset<Shape::kChunks>(row, chunk), from, there);
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(PanelShape<kDim>::kThreads, kDim > 128 ? 1 : 2)
    Panel(const Work work, int first) {
  using Shape = PanelShape<kDim>;
  constexpr int kRowTiles = Shape::kRowTiles;
  extern __shared__ unsigned char shared[];
  __shared__ Ahead<2> ahead;
  const uint32_t q = AlignShared(SharedAddress(shared));
  const uint32_t k = q + 2 * kPanelRows * Shape::kRowBytes;
  const uint32_t v = k + kBlockKeys * Shape::kRowBytes;

  const Segment segment = work.segments[first + blockIdx.x];
  const Tile& tile = work.tiles[segment.tile];
  const Problem& problem = work.problems[tile.problem];
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 * kRowTiles * 16;  // of the tile
  const int h = warp_row / kPanelRows;
  const Half& half = tile.half[h];
  const int row = warp_row % kPanelRows + lane / 4;  // of the half

  float out[kRowTiles][kDim / 8][4] = {};
  float max[kRowTiles][2];
  float sum[kRowTiles][2] = {};
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) max[m][0] = max[m][1] = kNoScore;

  if (threadIdx.x == 0) {
    ahead.walk.Begin(work, segment.run, segment.run_at);
    for (int i = 0; i < min(2, segment.blocks); ++i) Fetch(tile, problem, i, ahead);
  }
  LoadQueries<T, kDim>(problem, tile, q);
  CommitCopies();
  WaitForCopies<0>();
  __syncthreads();
  const auto load_k = [&](int step) {
    const Page& page = ahead.pages[step % Ahead<2>::kSlots];
    LoadBlock<T, kDim>(page.k, page.k_row_stride, problem.head_dim,
                       KeysOf(problem, ahead.cells[step % Ahead<2>::kSlots].block), k);
  };
  load_k(0);
  CommitCopies();
  for (int step = 0; step < segment.blocks; ++step) {
    const int slot = step % Ahead<2>::kSlots;
    const int sees = h == 0 ? ahead.cells[slot].sees[0] : ahead.cells[slot].sees[1];
    const int block = ahead.cells[slot].block;
    WaitForCopies<0>();
    __syncthreads();  // K is there, and nobody reads the V before
    if (work.stop != nullptr && (step + 1) % kStopPeriod == 0 &&
        __syncthreads_or(threadIdx.x == 0 && *work.stop)) {
      return;
    }
    LoadBlock<T, kDim>(ahead.pages[slot].v, ahead.pages[slot].v_row_stride, problem.v_head_dim,
                       KeysOf(problem, block), v);
    if (threadIdx.x == 0) {
      if (ahead.pages[slot].k == nullptr) ReportMissing(work, tile, block);
      if (step + 2 < segment.blocks) Fetch(tile, problem, step + 2, ahead);
    }
    CommitCopies();

    float s[kRowTiles][8][4] = {};
    if (sees != kSeesNone) {
      Score<T, kDim>(q, k, warp_row, lane, s);
      const uint64_t existing = ExistingKeys(problem, block);
      if (sees >= 0 || existing != ~uint64_t{0}) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          MaskScores<8>(s[m], RowMask(work, half, sees, row + 16 * m, existing),
                        RowMask(work, half, sees, row + 16 * m + 8, existing), lane);
        }
      }
    }
    WaitForCopies<0>();
    __syncthreads();  // V is there, and nobody reads K any more
    if (step + 1 < segment.blocks) load_k(step + 1);
    CommitCopies();
    if (sees == kSeesNone) continue;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      Soften<T, 8, false>(s[m], problem.scale_log2, max[m], sum[m], out[m]);
    }
    AddValues<T, kDim>(s, v, lane, out);
  }

  const int base = h == 0 ? 0 : tile.half[0].tokens * tile.half[0].heads;
  const int rows =
      tile.half[0].tokens * tile.half[0].heads + tile.half[1].tokens * tile.half[1].heads;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    const float top[2] = {max[m][0] * problem.scale_log2, max[m][1] * problem.scale_log2};
    const float whole[2] = {SumOfRow(sum[m][0]), SumOfRow(sum[m][1])};
    if (segment.state < 0) {
      GiveRows(problem, LookAtRows(problem, half, row + 16 * m), lane, top, whole, out[m]);
    } else {
      KeepRows(problem, half, work.states + segment.state, rows, base, row + 16 * m, lane, top,
               whole, out[m]);
    }
  }
}

template <typename T, int kDim>
cudaError_t Load(int* thread_blocks) {
  using Shape = PanelShape<kDim>;
  return LoadKernel(Panel<T, kDim>, Shape::kThreads, Shape::kSharedBytes, thread_blocks);
}

template <typename T>
cudaError_t LoadFor(int dim, int* thread_blocks) {
  if (dim <= 64) return Load<T, 64>(thread_blocks);
  return dim <= 128 ? Load<T, 128>(thread_blocks) : Load<T, 256>(thread_blocks);
}

template <typename T, int kDim>
cudaError_t Start(const Work& work, const Launch& launch, cudaStream_t stream) {
  using Shape = PanelShape<kDim>;
  Panel<T, kDim>
      <<<launch.count, Shape::kThreads, Shape::kSharedBytes, stream>>>(work, launch.first);
  return cudaGetLastError();
}

template <typename T>
cudaError_t StartFor(const Work& work, const Launch& launch, cudaStream_t stream) {
  if (launch.dim <= 64) return Start<T, 64>(work, launch, stream);
  if (launch.dim <= 128) return Start<T, 128>(work, launch, stream);
  return Start<T, 256>(work, launch, stream);
}

}  // namespace

cudaError_t LoadPanel(Format format, int dim, int* thread_blocks) {
  if (dim > kNarrowDimMax) return cudaErrorInvalidValue;
  return format == Format::kBF16 ? LoadFor<__nv_bfloat16>(dim, thread_blocks)
                                 : LoadFor<__half>(dim, thread_blocks);
}

cudaError_t LaunchPanel(const Work& work, const Launch& launch, cudaStream_t stream) {
  return launch.format == Format::kBF16 ? StartFor<__nv_bfloat16>(work, launch, stream)
                                        : StartFor<__half>(work, launch, stream);
}

}  // namespace annulus::cuda
