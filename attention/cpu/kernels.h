// The SIMD kernels of the CPU backend behind plain structs: one call takes a tile (query rows that
// share a KV head) over one KV block, keeping an online softmax. Two regimes with one interface:
// `panel` for many rows (rows in SIMD lanes, so that the softmax needs no sums across lanes, and
// keys and values are read as they lie), `stream` for few rows (dims in lanes, each key and value
// read once).
// Scores are kept in units of log2, scaled. A row that sees a score that is not finite gets a sum
// of NaN, and keeps it: arithmetic may have lost anything on the way to such a score, even to −∞.
// Functions touch only the tile's own memory and the
// block: safe to call on different tiles from many threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "annulus/dtype.h"

namespace annulus::cpu {

struct TileShape {
  int tokens = 0;  // consecutive query positions within one 64-token block
  int heads = 0;   // query heads of one KV head; row = token · heads + head
  int head_dim = 0;
  int v_head_dim = 0;
  DType kv_dtype = DType::kF32;
  float scale = 1;  // log2(e) · the caller's scale: a score is scale·q·k

  int rows() const { return tokens * heads; }
};

inline constexpr int kBlockKeys = 64;

// How many floats a kernel needs of each kind of memory for one tile. A kernel counts them with the
// functions that it finds its rows by. Whoever gives it the memory counts nothing.
struct TileFloats {
  size_t q = 0;
  size_t out = 0;
  size_t rows = 0;  // of max, and of sum
  size_t scores = 0;
  size_t keys = 0;
  size_t values = 0;
};

// Memory of one tile, each part 64-byte aligned. The layout of q and out belongs to the kernels.
// `rows` floats of max and sum stand for the tile's rows and, where lanes are left over, for none.
struct TileMemory {
  float* q = nullptr;       // zeroed before the rows are set
  float* out = nullptr;     // zeroed before the first block
  float* max = nullptr;     // log2 units; kNoScore before the first block
  float* sum = nullptr;     // of 2^(score − max); zeroed before the first block
  float* scores = nullptr;  // of the block at hand
  float* keys = nullptr;    // the block as the kernel wants it
  float* values = nullptr;
};

// Less than every finite score, yet finite, so that no difference gives NaN.
inline constexpr float kNoScore = -3.402823466e38f;

struct KeyBlock {
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  size_t k_row_stride = 0;  // elements
  size_t v_row_stride = 0;
  int keys = 0;                     // 1 to 64
  const uint64_t* masks = nullptr;  // [tokens], bit k: the key is seen; null: all are
};

struct Kernel {
  // What it needs for any block of at most 64 keys.
  TileFloats (*floats)(const TileShape& shape);
  // Stores row `row` of q [head_dim], not scaled, into the tile.
  void (*set_query)(const TileShape& shape, const TileMemory& tile, int row, const float* q);
  // Attends to one block. `next` (or null) is fetched meanwhile where that helps.
  void (*attend)(const TileShape& shape, const TileMemory& tile, const KeyBlock& block,
                 const KeyBlock* next);
  // Reads the accumulator [rows, v_head_dim]: Σ 2^(score − max)·v, not normalised.
  void (*get_out)(const TileShape& shape, const TileMemory& tile, float* out);
};

struct KernelSet {
  const char* target = nullptr;  // the instruction set
  int stream_rows_max = 0;       // up to here `stream` is the faster one
  bool avx512 = false;           // whether it needs AVX-512
  Kernel panel;
  Kernel stream;
  // Null, or the kernels take subnormals for 0 and give 0 for them: then whether the scores of the
  // queries that are set are right in spite of that, whatever the keys. An out that is smaller than
  // kFlushedOut all over may be wrong.
  bool (*takes)(const TileShape& shape, const TileFloats& floats, const TileMemory& tile) = nullptr;
};

// The least normal value, 2^-126, times more keys than there are, leaves a thousandth of it.
inline constexpr float kFlushedOut = 0x1p-80f;

// The kernels of the best instruction set of this machine for queries and KV of these dtypes.
const KernelSet& KernelsFor(DType q, DType kv);

// Of f32 multiply-adds, which take every dtype.
const KernelSet& FmaKernels();

// Of AVX512-BF16's dot product, where queries and KV are bf16; null on a machine without it, or
// when Highway was told to use less than AVX-512.
const KernelSet* Bf16DotKernels();

// Independent chains of that dot product, for its peak: returns the flops done, 4 for each pair of
// products. Only where Bf16DotKernels() is not null; `sink` keeps it from being optimised away.
double Bf16DotChains(int64_t steps, float* sink);

}  // namespace annulus::cpu
