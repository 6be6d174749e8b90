// Sets of KV (or query) blocks as a few runs, so that a million-token context costs dozens of
// entries and not one per block. The one currency between patterns, partitions, plans and backends.
// Immutable values; safe to share between threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace annulus {

// Tokens of one block. Block b holds the absolute token positions [64·b, 64·b + 64).
inline constexpr int64_t kBlockTokens = 64;

constexpr int64_t BlocksOf(int64_t tokens) {
  return (tokens + kBlockTokens - 1) / kBlockTokens;
}

// The blocks first, first + step, …, `count` of them. count ≥ 1, step ≥ 1 (1 when count is 1).
struct BlockRun {
  int64_t first = 0;
  int64_t count = 0;
  int64_t step = 1;

  int64_t last() const { return first + (count - 1) * step; }
  bool Contains(int64_t block) const {
    return block >= first && block <= last() && (block - first) % step == 0;
  }
  friend bool operator==(const BlockRun&, const BlockRun&) = default;
};

// A finite set of block indices ≥ 0, kept as disjoint runs ordered by first block.
// Runs with a step may interleave. Equal sets may be stored as different runs; SameBlocks()
// compares meanings.
class BlockSet {
 public:
  BlockSet() = default;

  // The blocks [first, first + count). count 0 gives the empty set.
  static BlockSet Range(int64_t first, int64_t count);
  // Any runs, overlapping or not, in any order.
  static BlockSet FromRuns(std::vector<BlockRun> runs);
  // Ascending blocks, each once.
  static BlockSet FromBlocks(const std::vector<int64_t>& blocks);

  const std::vector<BlockRun>& runs() const { return runs_; }
  bool empty() const { return runs_.empty(); }
  int64_t size() const;  // number of blocks
  bool Contains(int64_t block) const;

  BlockSet Union(const BlockSet& other) const;
  BlockSet Intersect(const BlockSet& other) const;
  BlockSet Subtract(const BlockSet& other) const;
  bool SameBlocks(const BlockSet& other) const;

  // Tokens in these blocks of a context of `context_tokens` tokens (its last block may be short;
  // blocks beyond its end count nothing).
  int64_t TokenCount(int64_t context_tokens) const;

  // The blocks in ascending order. Costs one entry per block: for what one launch needs.
  std::vector<int64_t> ToVector() const;

  // "[0..63] [100..900 step 16]".
  std::string ToString() const;

 private:
  std::vector<BlockRun> runs_;
};

// The common blocks of two runs: itself a run (by the Chinese remainder theorem), count 0 if none.
BlockRun Intersect(const BlockRun& a, const BlockRun& b);

// Appends the blocks of `a` that are not in `b`, as disjoint runs: at most two more than the
// smaller of the residues and the gaps that b leaves in a.
void AppendDifference(const BlockRun& a, const BlockRun& b, std::vector<BlockRun>* out);

}  // namespace annulus
