// Rows that see the same unit (choose.h), 128 at a time, against its blocks on the matrix units:
// what they see whole, a unit that they chose, or their own one up to themselves. Units are short:
// two K and two V blocks are in shared memory, so that the next is on its way meanwhile.
#include <algorithm>

#include "attention/cuda/choose.h"
#include "attention/cuda/load.cuh"
#include "attention/cuda/sm80/ahead.cuh"
#include "attention/cuda/sm80/panel.cuh"
#include "attention/cuda/sm80/softmax.cuh"

namespace annulus::cuda {
namespace {

constexpr int kStages = 2;
template <int kDim>
constexpr int kGatherBytes = (kChosenRows + kStages * 2 * kBlockKeys) * PanelShape<kDim>::kRowBytes
                             + kSharedAlign;

// What one thread block does.
struct Gathered {
  int kv_head;
  int block;  // the first
  int blocks;
  int slots[kChosenRows];  // of a chunk; −1: no row
  int keys[kChosenRows];   // that a row sees of its own unit, the first ones
};

// Queries that are done together with those of all heads of a group: a power of two, so that they
// lie within one block.
__host__ __device__ inline int QueriesOfTile(int group) {
  int queries = kBlockKeys;
  while (queries > 1 && queries * group > kChosenRows) queries /= 2;
  return queries;
}

// The `tile`-th of the tiles of rows that see their own units: those of `queries` queries at
// positions that are multiples of it.
__device__ inline void GatherOwn(const Chosen& chosen, int first_row, int rows, int tile,
                                 Gathered& to) {
  const int queries = QueriesOfTile(chosen.group);
  const int64_t begin = chosen.q_begin + first_row, end = begin + rows;
  const int64_t position = (begin / queries + tile / chosen.kv_heads) * queries;
  const int64_t last = min(min(position + queries, end), chosen.problem.kv_tokens) - 1;  // key
  const int kv_head = tile % chosen.kv_heads;
  const int64_t block = chosen.OwnUnit(max(position, begin) - chosen.q_begin) * chosen.unit_blocks;
  if (threadIdx.x == 0) {
    to.kv_head = kv_head;
    to.block = static_cast<int>(block);
    to.blocks = static_cast<int>(max(last / kBlockKeys, block) - block) + 1;
  }
  for (int r = threadIdx.x; r < kChosenRows; r += blockDim.x) {
    const int64_t row = position + r / chosen.group - begin;
    const bool there = r < queries * chosen.group && row >= 0 && row < rows;
    const int head = kv_head * chosen.group + r % chosen.group;
    to.slots[r] = there ? static_cast<int>((row * chosen.problem.heads + head) * chosen.picks +
                                           chosen.picks - 1)
                        : -1;
    const int64_t end = min(chosen.problem.kv_tokens, position + r / chosen.group + 1);
    to.keys[r] = static_cast<int>(end - block * kBlockKeys);
  }
}

__device__ inline void GatherChosen(const Chosen& chosen, int tile, Gathered& to) {
  const ChosenTile from = chosen.tiles[tile];
  if (threadIdx.x == 0) {
    to.kv_head = from.unit / chosen.units;
    to.block = from.unit % chosen.units * chosen.unit_blocks;
    to.blocks = chosen.unit_blocks;
  }
  for (int r = threadIdx.x; r < kChosenRows; r += blockDim.x) {
    to.slots[r] = r < from.count ? chosen.entries[from.first + r] : -1;
  }
}

template <typename T, int kDim>
__device__ inline void LoadQueries(const Chosen& chosen, int first_row, const int* slots,
                                   uint32_t to) {
  using Shape = PanelShape<kDim>;
  const Problem& problem = chosen.problem;
  const T* q = static_cast<const T*>(problem.q);
  for (int i = threadIdx.x; i < kChosenRows * Shape::kChunks; i += Shape::kThreads) {
    const int row = i / Shape::kChunks, chunk = i % Shape::kChunks, slot = slots[row];
    const bool there = slot >= 0 && chunk * 8 < problem.head_dim;
    const int place = slot / chosen.picks;
    const T* from = q;
    if (there) {
      from += int64_t{first_row + place / problem.heads} * problem.q_token_stride +
              place % problem.heads * problem.q_head_stride + chunk * 8;
    }
    CopyAsync16(to + ChunkOffset<Shape::kChunks>(row, chunk), from, there);
  }
}

// As MaskScores, of rows that see their first keys: `low` and `high` of them.
__device__ inline void MaskBeyond(Scores<8>& s, int low, int high, int lane) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int key = 8 * n + 2 * (lane % 4);
    if (key >= low) s[n][0] = kUnseen;
    if (key + 1 >= low) s[n][1] = kUnseen;
    if (key >= high) s[n][2] = kUnseen;
    if (key + 1 >= high) s[n][3] = kUnseen;
  }
}

// kOwn: rows that see their own units; else those that chose them, whose pages are whole and were
// looked at for their means.
template <typename T, int kDim, bool kOwn>
__device__ inline void LoadBlockOf(const Chosen& chosen, const Gathered& tile, int step,
                                   bool values, uint32_t to) {
  const Problem& problem = chosen.problem;
  const int block = tile.block + step;
  const Page& page = problem.pages[int64_t{block} * problem.kv_heads + tile.kv_head];
  const int keys = kOwn ? KeysOf(problem, block) : kBlockKeys;
  if (values) {
    LoadBlock<T, kDim>(page.v, page.v_row_stride, problem.v_head_dim, keys, to);
  } else {
    LoadBlock<T, kDim>(page.k, page.k_row_stride, problem.head_dim, keys, to);
    if (kOwn && threadIdx.x == 0 && page.k == nullptr) {
      ReportMissing(chosen.report, 0, tile.kv_head, block);
    }
  }
}

template <typename T, int kDim, bool kOwn>
__global__ void __launch_bounds__(PanelShape<kDim>::kThreads, 2)
    Gather(const Chosen chosen, int first_row, int rows) {
  using Shape = PanelShape<kDim>;
  constexpr int kRowTiles = Shape::kRowTiles;
  extern __shared__ unsigned char shared[];
  __shared__ Gathered tile;
  const uint32_t q = AlignShared(SharedAddress(shared));
  const uint32_t blocks = q + kChosenRows * Shape::kRowBytes;
  const auto k = [&](int step) {
    return blocks + step % kStages * 2 * kBlockKeys * Shape::kRowBytes;
  };
  const auto v = [&](int step) { return k(step) + kBlockKeys * Shape::kRowBytes; };
  const int number = static_cast<int>(blockIdx.x);
  if constexpr (kOwn) {
    GatherOwn(chosen, first_row, rows, number, tile);
  } else {
    if (number >= *chosen.tile_count) return;
    GatherChosen(chosen, number, tile);
  }
  __syncthreads();
  const Problem& problem = chosen.problem;
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 * kRowTiles * 16;
  float out[kRowTiles][kDim / 8][4] = {};
  float max[kRowTiles][2];
  float sum[kRowTiles][2] = {};
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) max[m][0] = max[m][1] = kNoScore;
  LoadQueries<T, kDim>(chosen, first_row, tile.slots, q);
  const auto load = [&](int step) {  // two groups of copies
    if (step < tile.blocks) LoadBlockOf<T, kDim, kOwn>(chosen, tile, step, false, k(step));
    CommitCopies();
    if (step < tile.blocks) LoadBlockOf<T, kDim, kOwn>(chosen, tile, step, true, v(step));
    CommitCopies();
  };
  load(0);
#pragma unroll 1
  for (int step = 0; step < tile.blocks; ++step) {
    WaitForCopies<1>();
    __syncthreads();  // K is there, and nobody reads the block before
    load(step + 1);
    float s[kRowTiles][8][4] = {};
    Score<T, kDim>(q, k(step), warp_row, lane, s);
    if constexpr (kOwn) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const int row = warp_row + lane / 4 + 16 * m;
        MaskBeyond(s[m], tile.keys[row] - step * kBlockKeys, tile.keys[row + 8] - step * kBlockKeys,
                   lane);
      }
    }
    WaitForCopies<2>();
    __syncthreads();  // V is there
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      Soften<T, 8, false>(s[m], problem.scale_log2, max[m], sum[m], out[m]);
    }
    AddValues<T, kDim>(s, v(step), lane, out);
  }
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float whole = SumOfRow(sum[m][i]);
      const int64_t slot = tile.slots[warp_row + lane / 4 + 16 * m + 8 * i];
      if (slot < 0) continue;
      if (lane % 4 == 0) {
        chosen.states[slot] = max[m][i] * problem.scale_log2;
        chosen.states[chosen.slots() + slot] = whole;
      }
      KeepColumns(problem, chosen.states + 2 * chosen.slots() + slot * problem.v_head_dim, 0, lane,
                  i, out[m]);
    }
  }
}

template <typename T, int kDim>
cudaError_t Load() {
  int thread_blocks = 0;
  for (const auto kernel : {Gather<T, kDim, true>, Gather<T, kDim, false>}) {
    const cudaError_t error =
        LoadKernel(kernel, PanelShape<kDim>::kThreads, kGatherBytes<kDim>, &thread_blocks);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T, int kDim>
cudaError_t Start(const Chosen& chosen, int chunk, cudaStream_t stream) {
  constexpr int kThreads = PanelShape<kDim>::kThreads, kBytes = kGatherBytes<kDim>;
  const int first_row = chunk * chosen.chunk_rows;
  const int rows = std::min(chosen.chunk_rows, chosen.rows - first_row);
  const int queries = QueriesOfTile(chosen.group);
  const int64_t begin = chosen.q_begin + first_row;
  const int64_t runs = (begin + rows - 1) / queries - begin / queries + 1;
  const auto own_tiles = static_cast<unsigned>(runs * chosen.kv_heads);
  Gather<T, kDim, true><<<own_tiles, kThreads, kBytes, stream>>>(chosen, first_row, rows);
  if (const auto tiles = static_cast<unsigned>(chosen.tiles_max()); tiles > 0) {
    Gather<T, kDim, false><<<tiles, kThreads, kBytes, stream>>>(chosen, first_row, rows);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t StartFor(const Chosen& chosen, int chunk, cudaStream_t stream) {
  const int dim = std::max(chosen.problem.head_dim, chosen.problem.v_head_dim);
  return dim <= 64 ? Start<T, 64>(chosen, chunk, stream) : Start<T, 128>(chosen, chunk, stream);
}

}  // namespace

cudaError_t LoadGather() {
  for (const cudaError_t error : {Load<__half, 64>(), Load<__half, 128>(),
                                  Load<__nv_bfloat16, 64>(), Load<__nv_bfloat16, 128>()}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t LaunchGather(const Chosen& chosen, int chunk, cudaStream_t stream) {
  return chosen.problem.kv_format == Format::kBF16 ? StartFor<__nv_bfloat16>(chosen, chunk, stream)
                                                   : StartFor<__half>(chosen, chunk, stream);
}

}  // namespace annulus::cuda
