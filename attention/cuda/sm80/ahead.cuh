// The blocks of a segment ahead of the one at hand, as the kernels that work block by block fetch
// them.
#pragma once

#include "attention/cuda/fragments.cuh"

namespace annulus::cuda {

__device__ inline int KeysOf(const Problem& problem, int block) {
  const int64_t keys = problem.kv_tokens - int64_t{block} * kBlockKeys;
  return keys < kBlockKeys ? static_cast<int>(keys) : kBlockKeys;
}

// The cells and pages of the next blocks, by step. One thread fetches them, two steps ahead.
template <int kHalfCount>
struct Ahead {
  static constexpr int kSlots = 4;
  Cell<kHalfCount> cells[kSlots];
  Page pages[kSlots];
  Walk walk;
};

template <int kHalfCount>
__device__ inline void Fetch(const Tile& tile, const Problem& problem, int step,
                             Ahead<kHalfCount>& ahead) {
  constexpr int kSlots = Ahead<kHalfCount>::kSlots;
  Cell<kHalfCount>& cell = ahead.cells[step % kSlots];
  if (step != 0) ahead.walk.Skip(1);
  cell = ahead.walk.template Now<kHalfCount>();
  const auto* page = reinterpret_cast<const unsigned char*>(PageAt(tile, problem, cell.block));
  const uint32_t to = SharedAddress(&ahead.pages[step % kSlots]);
  CopyAsync16(to, page, true);
  CopyAsync16(to + 16, page + 16, true);
}

}  // namespace annulus::cuda
