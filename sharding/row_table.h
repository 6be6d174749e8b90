// RowTable: a problem's pattern compiled once, row of blocks by row of blocks, for everything
// that plans it; and ReadCounts, which sums rows into how often each KV block is read.
// This is what keeps planning fast: a row is a few runs, and a run costs O(1) to add whatever its
// length, so 10M tokens under S2 (10⁹ visited blocks) cost 10⁶ row entries.
// RowTable is an immutable value, safe to share between threads; the others are for one thread.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "attention/block_set.h"
#include "base/stop.h"
#include "base/thread_pool.h"
#include "sharding/plan.h"

namespace annulus {

// How many threads planning `problem` is worth: 0 for all cores.
int PlanningThreads(const Problem& problem);

class RowTable {
 public:
  // Compiles every query block of `problem`, once for each class of KV heads. Rows are missing if
  // `stop` stopped it: then it must not be used.
  RowTable(const Problem& problem, ThreadPool& pool, const Stop& stop = {});

  // A BlockRun in half the memory: a problem has less than 2^31 blocks.
  struct Run {
    int32_t first = 0;
    int32_t count = 0;
    int32_t step = 1;
    BlockRun blocks() const { return {first, count, step}; }
  };
  // The KV blocks that the queries of `q_block` (one of the problem's) see, as disjoint runs.
  std::span<const Run> Row(int class_index, int64_t q_block) const;

  // Heads that see the same have one class; classes are numbered 0, 1, ….
  int classes() const { return static_cast<int>(compiled_.size()); }
  int KvClass(int kv_head) const { return class_of_[kv_head]; }
  int QueryClass(int head) const { return class_of_[head / group_]; }
  int group() const { return group_; }  // query heads per KV head

  const TokenRange& q_range() const { return q_range_; }
  int64_t kv_tokens() const { return q_range_.end; }
  int64_t kv_blocks() const { return BlocksOf(q_range_.end); }
  // Queries of the problem in one query block.
  int64_t Queries(int64_t q_block) const;

 private:
  static constexpr int64_t kChunkBlocks = 1024;
  struct Chunk {  // consecutive query blocks, compiled by one thread
    std::vector<uint32_t> begin;
    std::vector<Run> runs;
  };
  Chunk Compile(const Pattern& pattern, int kv_head, int64_t q_begin, int64_t q_end,
                const Stop& stop) const;

  TokenRange q_range_;
  int group_ = 1;
  std::vector<int> class_of_;  // by KV head
  std::vector<std::vector<Chunk>> compiled_;
};

// How many queries read each KV block of a context. Serves one count after another and keeps its
// memory between them: at 10M tokens, fresh memory would cost more than the counting.
class ReadCounts {
 public:
  explicit ReadCounts(int64_t kv_blocks) : counts_(static_cast<size_t>(kv_blocks)) {}

  // `queries` more queries read each block of `run`.
  void Add(const BlockRun& run, int64_t queries);
  // The rows of one query block, or of several, under a class of heads.
  void AddRow(const RowTable& rows, int class_index, int64_t q_block);
  void AddRows(const RowTable& rows, int class_index, const BlockSet& q_blocks);

  // The counts by block, valid until the next call of Finish. The next Add begins a new count.
  const std::vector<int64_t>& Finish();

 private:
  // The runs of one step: what changes at a block against the block one step before.
  struct Changes {
    int64_t step = 1;
    bool any = false;
    std::vector<int64_t> at;
  };
  Changes& Of(int64_t step);

  std::vector<Changes> changes_;
  std::vector<int64_t> counts_;
};

// fn(block) for each block of a set, run by run.
template <typename Fn>
void ForEachBlock(const BlockSet& blocks, Fn fn) {
  for (const BlockRun& run : blocks.runs()) {
    for (int64_t i = 0; i < run.count; ++i) fn(run.first + i * run.step);
  }
}

// The KV blocks that some row of `q_blocks` reads.
BlockSet BlocksRead(const RowTable& rows, int class_index, const BlockSet& q_blocks);

// Ascending distinct blocks, one by one, into few runs: ranges, and ranges of equal length at equal
// distance as one run for each place within them.
class BlockCollector {
 public:
  void Add(int64_t block);
  BlockSet Finish() &&;

 private:
  struct Ranges {  // `count` ranges of `length` blocks, `distance` apart
    int64_t first = 0;
    int64_t length = 0;
    int64_t distance = 0;
    int64_t count = 0;
  };
  void CloseRange();

  int64_t begin_ = 0;  // of the range that grows
  int64_t end_ = 0;
  std::vector<Ranges> ranges_;
};

}  // namespace annulus
