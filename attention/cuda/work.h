// What the kernels of the CUDA backend are given: plain structs that lie in device memory, filled
// by work_list.cc, and the launchers. One launch does the segments of one kind; all pointers are to
// device memory unless they say otherwise. Launchers do not wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace annulus::cuda {

inline constexpr int kBlockKeys = 64;      // keys of one KV block
inline constexpr int kPanelRows = 64;      // query rows of one half of a panel's tile
inline constexpr int kHalves = 4;          // of a tile, at most
inline constexpr int kStreamRows = 16;     // query rows of a stream's tile
inline constexpr int kRowStrides = 6;      // of one batch's pages and queries, for sm_90a
inline constexpr int kHeadDimMax = 576;    // and a multiple of 8
inline constexpr int kNarrowDimMax = 256;  // beyond: wide heads, which have kernels of their own
inline constexpr int kBoxedDimMax = 192;   // up to it kernels of sm_90a take narrower rows too
inline constexpr int kLatentDim = 512;     // of the values of kLatent90

enum class Format : int { kF32, kF16, kBF16 };

// One block of one KV head: rows of head_dim and v_head_dim elements, 16-byte aligned. Null: not
// held.
struct alignas(16) Page {
  const void* k;
  const void* v;
  int32_t k_row_stride;  // elements
  int32_t v_row_stride;
};

// One AttendArgs.
struct Problem {
  const void* q = nullptr;      // rows of heads of head_dim elements
  const Page* pages = nullptr;  // of `kv_heads` heads by block: pages[block · kv_heads + head]
  float* out = nullptr;         // [rows, heads, v_head_dim], merged into
  float* lse = nullptr;         // [rows, heads], natural log
  int64_t q_token_stride = 0;   // elements
  int64_t q_head_stride = 0;
  int64_t kv_tokens = 0;
  int32_t kv_heads = 0;
  int32_t heads = 0;
  int32_t head_dim = 0;
  int32_t v_head_dim = 0;
  Format q_format = Format::kF32;
  Format kv_format = Format::kF32;
  float scale_log2 = 1;  // log2(e) · the caller's scale
  // Of kernels of sm_90a: tensor maps (sm90/tensor_map.h) of K and V of each KV head's last block,
  // if that has fewer than 64 keys.
  const void* short_maps = nullptr;
};

// Query rows that see the same keys: row = token · heads + head.
struct Half {
  int32_t row_first = 0;   // of the problem's q, the first token
  int32_t head_first = 0;  // of the problem's heads
  int16_t tokens = 0;      // within one 64-token block; 0: nothing
  int16_t heads = 0;
  int16_t mask_row = 0;  // the first token's place in its block
};

// Up to kHalves halves that share a KV head and are done together.
struct Tile {
  int32_t problem = 0;
  int32_t kv_head = 0;    // index in the problem's pages
  int32_t run_first = 0;  // of its blocks, laid end to end
  int32_t run_end = 0;
  int32_t masked = 0;  // the first so many blocks; all halves see the others whole
  int32_t segments = 0;
  int64_t state_first = 0;  // of its segments' states, in floats, one after the other
  Half half[kHalves];
};

// What a half sees of a run's blocks, if that is not an index.
inline constexpr int32_t kSeesAll = -1;
inline constexpr int32_t kSeesNone = -2;

// The blocks first, first + step, … or, with a step of 0, those in ids from `first` on; for
// each half: kSeesAll, kSeesNone, or where in ids the run's entries begin, one per block: a
// mask's id, or one of these two.
struct Run {
  int32_t first = 0;
  int32_t step = 1;
  int32_t count = 0;
  int32_t sees[kHalves] = {kSeesNone, kSeesNone, kSeesNone, kSeesNone};
};

// A part of a tile's blocks, each step-th from block_first on: what one thread block does. Only
// those of a Lane have steps. With `state` < 0 the result goes to the problem's out and lse; else
// it is kept there for MergeSegments: max [rows] in units of log2, sum [rows], out
// [rows, v_head_dim], not divided by the sum.
struct alignas(16) Segment {
  int32_t tile = 0;
  int32_t problem = 0;  // the tile's
  int32_t run = 0;      // where its first block is: of which run,
  int32_t run_at = 0;   // and which of that
  int32_t block_first = 0;
  int32_t blocks = 0;
  int32_t step = 1;
  int64_t state = -1;  // in floats
};

// Segments [first, end) that one thread block of kStream does, one after the other: all such ranges
// have about as many blocks, whatever the lengths of the contexts (Lean Attention, arXiv
// 2405.10480). `start` is a copy of the first: each load that the next one waits for delays the
// first keys.
struct Lane {
  int32_t first = 0;
  int32_t end = 0;
  Segment start;
};

// What a kernel tells: the first page that it missed.
struct Report {
  int32_t missing = 0;  // 1: the other two say which
  int32_t kv_head = 0;  // as Tile::kv_head
  int32_t problem = 0;
  int32_t block = 0;
};

// Blocks of a problem whose keys are measured, at most kKeyRunBlocks.
inline constexpr int kKeyRunBlocks = 16;
struct KeyRun {
  int32_t problem = 0;
  int32_t first = 0;
  int32_t step = 1;
  int32_t count = 0;
};

struct Work {
  const Problem* problems = nullptr;
  const Tile* tiles = nullptr;
  const Run* runs = nullptr;
  const int32_t* ids = nullptr;
  const uint64_t* masks = nullptr;  // [ids, 64]: bit k of row r says whether r sees key k
  const Segment* segments = nullptr;
  const Lane* lanes = nullptr;
  float* states = nullptr;
  Report* report = nullptr;            // in memory that the host shares
  const volatile int* stop = nullptr;  // others set it to 1: end soon; may be null
  // Of kernels of sm_90a: which segment is next, and how many thread blocks have left, 0 between
  // launches.
  uint32_t* counters = nullptr;
  int32_t row_strides[kRowStrides] = {};  // of pages and queries, in elements; 0: no more
  const KeyRun* key_runs = nullptr;
  // By problem the bits of the largest magnitude among its keys, in f32, once measured, or of
  // infinity: then kPanel90 looks at scores with care.
  uint32_t* key_sizes = nullptr;
};

// Which kernel does a tile.
enum class Kernel : int {
  kSimple,  // one half of up to 64 rows in f32: any format, any scale
  kStream,  // one half of up to 16 rows on the matrix units: 16-bit q and KV
  kPanel,   // two halves of up to 64 rows on the matrix units: 16-bit q and KV
  kWide,    // one half of up to 64 rows likewise, of head dims beyond 256
  // As kPanel, of more halves: head dims 64 to kBoxedDimMax and 256, values' ValueDimOf the next of
  // kDims or less, 64 at least; at most kRowStrides row strides.
  kPanel90,
  // Latent heads, few rows and many: one half of up to 64 rows, head dim 512 or 576, values the
  // first kLatentDim dims of the keys' own rows, at most kRowStrides row strides.
  kLatent90,
  // As kPanel90, of one half, head dims 64 and 128: for rows that share their list with no other
  // ones.
  kSingle90,
};
inline constexpr int kKernels = 7;

// Head dims that kernels are compiled for: the larger one of a problem's, or the next.
inline constexpr int kDims[] = {64, 128, 192, 256, 512, 576};
constexpr int DimFor(int head_dim) {
  for (const int dim : kDims) {
    if (head_dim <= dim) return dim;
  }
  return kHeadDimMax;
}

// Blocks after which a thread block of a kernel of sm_90a leaves: some 2 ms.
inline constexpr int kStayBlocks = 2048;

// Of the values that kernels of sm_90a take beside keys of one of kDims.
constexpr int ValueDimOf(int dim) {
  return dim == 192 ? 128 : dim < kLatentDim ? dim : kLatentDim;
}
constexpr bool IsHopper(Kernel kernel) {
  return kernel == Kernel::kPanel90 || kernel == Kernel::kLatent90 || kernel == Kernel::kSingle90;
}
constexpr int HalvesOf(Kernel kernel, int dim) {
  if (kernel == Kernel::kPanel90) return dim <= 64 ? 4 : dim <= 192 ? 3 : 2;
  return kernel == Kernel::kPanel ? 2 : 1;
}

// One launch: segments (kStream: lanes) [first, first + count).
struct Launch {
  Kernel kernel = Kernel::kSimple;
  Format format = Format::kF32;  // of the problems' keys; kSimple takes any
  int dim = 0;                   // DimFor their head dims; likewise
  int first = 0;
  int count = 0;
  int slots = 0;  // thread blocks that run at once
  // sm_90a: a thread block leaves once it has done so many blocks, so that other work on the
  // device, such as transfers, need not wait for a long launch to end; others take its place.
  int64_t blocks = 0;  // of all segments

  bool SameKernel(const Launch& other) const {
    return kernel == other.kernel && format == other.format && dim == other.dim;
  }
};

// Each kernel's ways to be loaded into the current device, before the first launch, since loading
// waits for kernels that run (*thread_blocks: how many a multiprocessor runs at once; an error if
// there is too little shared memory, or none for this head dim), and to be launched.
using LoadFunction = cudaError_t(Format format, int dim, int* thread_blocks);
using LaunchFunction = cudaError_t(const Work& work, const Launch& launch, cudaStream_t stream);
LoadFunction LoadSimple, LoadStream, LoadPanel, LoadWide, LoadPanel90, LoadLatent90, LoadSingle90;
LaunchFunction LaunchSimple, LaunchStream, LaunchPanel, LaunchWide, LaunchPanel90, LaunchLatent90,
    LaunchSingle90;

// Measures the keys of key_runs[0..runs), of up to `kv_heads_max` KV heads.
cudaError_t LoadMeasure();
cudaError_t LaunchMeasure(const Work& work, int runs, int kv_heads_max, cudaStream_t stream);

// Merges the segments of the tiles tile_ids[0..count), each of which has several, at most
// `rows_max` rows and values of `dim_max` dims, into out and lse.
cudaError_t LoadMerge();
cudaError_t LaunchMerge(const Work& work, const int32_t* tile_ids, int count, int rows_max,
                        int dim_max, cudaStream_t stream);

}  // namespace annulus::cuda
