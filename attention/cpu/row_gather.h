// Queries that see the same keys, put together: where each query has a list of its own, those that
// see a block become a tile of their own, so that kernels compute what is seen and not what any of
// their neighbours sees. Blocks in a row that the same queries see share one such tile, whose
// softmax state is then merged into that of all queries.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cpu/kernels.h"
#include "attention/cpu/tile_memory.h"
#include "attention/cpu/tile_plan.h"

namespace annulus::cpu {

// What a thread keeps from call to call, so that a warm one allocates nothing.
struct GatherRoom {
  TileRoom tile;
  std::vector<float> q;         // a row
  std::vector<float> out;       // [rows, v_head_dim]
  std::vector<int> tokens;      // of the gathered tile, among those of all queries
  std::vector<int> asked;       // those that see keys of the block at hand
  std::vector<uint64_t> masks;  // of them
};

class RowGather {
 public:
  // `state` has the rows of `tile`; it is cleared.
  RowGather(const KernelSet& kernels, const Tile& tile, const SegmentState& state,
            GatherRoom* room);

  // Attends to one block; `next` as Kernel::attend has it. False: `kernels` do not take queries
  // that see it.
  bool Attend(int64_t block, KeyBlock keys, const KeyBlock* next);
  // Once, after all blocks.
  void Finish() { Give(); }

 private:
  // Which tokens see keys of the block, and which of them.
  void Ask(int64_t block, int keys);
  bool Take();
  void Give();

  const KernelSet& kernels_;
  const Tile& tile_;
  const SegmentState state_;
  GatherRoom& room_;
  TileShape shape_;  // of the gathered tile; no tokens: there is none
  const Kernel* kernel_ = nullptr;
  TileMemory memory_;
};

}  // namespace annulus::cpu
