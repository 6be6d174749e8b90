// RowTable: a problem's pattern compiled once for everything that plans it; and ReadCounts, which
// sums rows of blocks into how often each KV block is read.
// This is what keeps planning fast: where rows follow from one another a few bands stand for all of
// them (attention/row_bands.h), so that 10M tokens under S2 cost as much as 10K. Elsewhere a row is
// a few runs, and a run costs O(1) to add whatever its length.
// RowTable is an immutable value, safe to share between threads; the others are for one thread.
#pragma once

#include <algorithm>
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

  // fn(BlockRun) for the KV blocks that the queries of `q_block` (one of the problem's) see, as
  // disjoint runs.
  template <typename Fn>
  void ForEachRun(int class_index, int64_t q_block, Fn fn) const;

  // Whether the class's rows are kept as bands; then those in ascending order.
  bool banded(int class_index) const { return of_class_[class_index].banded; }
  const std::vector<RowStretch>& Stretches(int class_index) const {
    return of_class_[class_index].stretches;
  }

  // Heads that see the same have one class; classes are numbered 0, 1, …. A KV head sees what any
  // of its query heads sees.
  int classes() const { return static_cast<int>(of_class_.size()); }
  int KvClass(int kv_head) const { return class_of_[kv_head]; }
  int QueryClass(int head) const { return query_class_of_[head]; }
  int group() const { return group_; }  // query heads per KV head

  const TokenRange& q_range() const { return q_range_; }
  int64_t q_blocks_end() const { return BlocksOf(q_range_.end); }
  const TokenRange& keys() const { return keys_; }
  int64_t kv_blocks() const { return BlocksOf(keys_.end); }
  // Keys in the blocks of a run, which all hold some.
  int64_t Keys(const BlockRun& run) const {
    return run.count * kBlockTokens - std::max<int64_t>(0, keys_.begin - run.first * kBlockTokens) -
           std::max<int64_t>(0, (run.last() + 1) * kBlockTokens - keys_.end);
  }
  // Queries of the problem in one query block.
  int64_t Queries(int64_t q_block) const;

 private:
  // A BlockRun in half the memory: a problem has less than 2^31 blocks.
  struct Run {
    int32_t first = 0;
    int32_t count = 0;
    int32_t step = 1;
    BlockRun blocks() const { return {first, count, step}; }
  };
  static constexpr int64_t kChunkBlocks = 1024;
  struct Chunk {  // consecutive query blocks, compiled by one thread
    std::vector<uint32_t> begin;
    std::vector<Run> runs;
  };
  struct Class {
    bool banded = false;
    std::vector<RowStretch> stretches;
    std::vector<Chunk> chunks;  // of rows one by one; none if banded
  };
  std::span<const Run> Row(int class_index, int64_t q_block) const;
  const RowStretch* StretchOf(int class_index, int64_t q_block) const;
  // A class is of a head of the problem's pattern, or of one of its members.
  struct Head {
    const Pattern* pattern;
    int kv_head;
  };
  std::vector<Head> MakeClasses(const Problem& problem);
  Chunk Compile(const Head& head, int64_t q_begin, int64_t q_end, const Stop& stop) const;

  TokenRange q_range_;
  TokenRange keys_;
  int group_ = 1;
  std::vector<int> class_of_;        // by KV head
  std::vector<int> query_class_of_;  // by query head
  std::vector<Class> of_class_;
};

template <typename Fn>
void RowTable::ForEachRun(int class_index, int64_t q_block, Fn fn) const {
  if (!banded(class_index)) {
    for (const Run& run : Row(class_index, q_block)) fn(run.blocks());
    return;
  }
  const RowStretch* stretch = StretchOf(class_index, q_block);
  if (stretch == nullptr) return;
  for (const RowBand& band : stretch->bands) {
    const BlockRun run = band.Row(q_block);
    if (run.count > 0) fn(run);
  }
}

// fn(stretch, rows) for the parts of the class's stretches that lie in `q_blocks`, as runs. The
// class is banded.
template <typename Fn>
void ForEachStretch(const RowTable& rows, int class_index, const BlockSet& q_blocks, Fn fn) {
  const std::vector<RowStretch>& stretches = rows.Stretches(class_index);
  for (const BlockRun& run : q_blocks.runs()) {
    auto at = std::upper_bound(
        stretches.begin(), stretches.end(), run.first,
        [](int64_t block, const RowStretch& stretch) { return block < stretch.q_end; });
    for (; at != stretches.end() && at->q_begin <= run.last(); ++at) {
      const BlockRun part = Intersect(run, {at->q_begin, at->q_end - at->q_begin, 1});
      if (part.count > 0) fn(*at, part);
    }
  }
}

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
