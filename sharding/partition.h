// Partition: which rank owns which KV blocks of a context, and with them their tokens, as a
// PartitionSpec says.
// Ownership is by whole 64-token blocks; a context with fewer blocks than ranks leaves ranks idle.
// Immutable value; O(1) memory whatever the context's length.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "annulus/placement.h"
#include "attention/block_set.h"

namespace annulus {

class Partition {
 public:
  // Blocks [first_block, first_block + blocks) over `world` ranks; blocks ≥ 0, world ≥ 1.
  Partition(PartitionSpec spec, int64_t first_block, int64_t blocks, int world);

  const PartitionSpec& spec() const { return spec_; }
  int world() const { return world_; }
  int64_t first_block() const { return first_block_; }
  int64_t blocks() const { return blocks_; }

  // The rank of a block, which must be one of the partition's.
  int Owner(int64_t block) const;
  BlockSet BlocksOf(int rank) const;

  // Sets (*owners)[r] for every rank r that owns a block of `run`; others are left as they are.
  // Blocks outside the partition are ignored. Walks chunks, never the run's blocks, and of a
  // block-cyclic partition one period at most.
  void MarkOwners(BlockRun run, std::vector<bool>* owners) const;

  friend bool operator==(const Partition&, const Partition&) = default;

 private:
  int64_t end() const { return first_block_ + blocks_; }
  int64_t ChunkOf(int64_t block) const;
  int64_t ChunkBegin(int64_t chunk) const;
  int ChunkOwner(int64_t chunk) const;

  PartitionSpec spec_;
  int64_t first_block_ = 0;
  int64_t blocks_ = 0;
  int world_ = 1;
  // Contiguous and zigzag cut the blocks into this many chunks as even as they go, the longer ones
  // first; block-cyclic goes round in chunks of its unit (0 here).
  int64_t chunks_ = 0;
};

}  // namespace annulus
