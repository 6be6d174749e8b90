// What the kernels are given that choose keys by data on the device and attend to them: words that
// score units of whole blocks by their mean key (attention/selector.h). Plain structs that lie in
// device memory, and the launchers, which do not wait. Choices are those of a CPU, bit for bit:
// sums are those of attention/select/summaries.h and scores.h.
//
// Each row, a query of one head, has `picks` slots: one for each unit before its own that it sees,
// and the last one for its own. A slot keeps the row's softmax state over
// that unit. Rows that see a unit are put together, so that kernels compute what is seen and not
// what any of a row's neighbours sees.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/cuda/work.h"

namespace annulus::cuda {

inline constexpr int kChosenPicksMax = 32;  // units that a row sees, its own included
inline constexpr int kChosenDimMax = 128;   // of keys and values
inline constexpr int kChosenRows = 128;     // of a tile
inline constexpr int kChosenUnitsMax = 8192;

// Rows of one KV head that see the same unit.
struct alignas(16) ChosenTile {
  int32_t unit = 0;   // kv_head · units + unit
  int32_t first = 0;  // of Chosen::entries
  int32_t count = 0;
};

struct Chosen {
  Problem problem;      // its pages are those of its first KV head on
  int64_t q_begin = 0;  // position of the first query
  int32_t rows = 0;     // queries
  int32_t kv_heads = 0;
  int32_t group = 1;  // query heads of a KV head
  int32_t unit_blocks = 1;
  int32_t units = 0;  // that may be chosen: those before the last row's own
  int32_t picks = 1;
  float* means = nullptr;  // [kv_heads, units, head_dim]
  // {f32 score, i32 unit} [heads, rows, picks − 1]: what a row sees besides its own unit, the best
  // of its candidates in the order of Before() or those of its list, then units of −1.
  int2* best = nullptr;
  // The least head · rows + row that sees a unit whose score f32 does not hold.
  unsigned long long* unscored = nullptr;
  Report* report = nullptr;
  const int* stop = nullptr;  // in host memory; once 1, no choices are needed any more. Or null
  // Queries [chunk · chunk_rows, …) are attended together, within memory for their slots.
  int32_t chunk_rows = 0;
  // [chunks, kv_heads, units]: rows that see a unit, then where the next one's entry lies.
  int32_t* counts = nullptr;
  // Of one chunk:
  int32_t* tile_count = nullptr;
  ChosenTile* tiles = nullptr;
  int32_t* entries = nullptr;  // slots by unit
  // max [slots] in units of log2, sum [slots], out [slots, v_head_dim], not divided by the sum.
  float* states = nullptr;

  int chunks() const { return (rows + chunk_rows - 1) / chunk_rows; }
  // Of a chunk: slots; and tiles at most.
  __host__ __device__ int64_t slots() const { return int64_t{chunk_rows} * problem.heads * picks; }
  int64_t tiles_max() const {
    return int64_t{chunk_rows} * problem.heads * (picks - 1) / kChosenRows +
           int64_t{kv_heads} * units;
  }
  __host__ __device__ int64_t OwnUnit(int64_t row) const {
    const int64_t position = q_begin + row, last = problem.kv_tokens - 1;
    return (position < last ? position : last) / (int64_t{unit_blocks} * kBlockKeys);
  }
};

// What rows see as data (attention/key_list.h), each row's units ascending, its own the last.
struct ChosenLists {
  const int64_t* begin = nullptr;  // [heads · rows + 1]
  const int32_t* keys = nullptr;
  int64_t rows = 0;       // of a head
  int64_t row_first = 0;  // that of the first query
  int32_t head_first = 0;
};

// The units' means, then each row's best.
cudaError_t LoadChoose();
cudaError_t LaunchChoose(const Chosen& chosen, cudaStream_t stream);
// Takes what lists say instead.
cudaError_t LaunchLists(const Chosen& chosen, const ChosenLists& lists, cudaStream_t stream);

// A chunk's entries and tiles; its slots; their merge into out and lse.
cudaError_t LaunchRoute(const Chosen& chosen, int chunk, cudaStream_t stream);
cudaError_t LoadGather();
cudaError_t LaunchGather(const Chosen& chosen, int chunk, cudaStream_t stream);
cudaError_t LaunchMergeSlots(const Chosen& chosen, int chunk, cudaStream_t stream);

}  // namespace annulus::cuda
