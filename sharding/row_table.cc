#include "sharding/row_table.h"

#include <algorithm>
#include <map>

#include "base/check.h"

namespace annulus {

int PlanningThreads(const Problem& problem) {
  constexpr int64_t kBlocksOfOneThread = 4096;
  return problem.QueryBlocks().size() * problem.kv_heads > kBlocksOfOneThread ? 0 : 1;
}

RowTable::RowTable(const Problem& problem, ThreadPool& pool, const Stop& stop)
    : q_range_(problem.q_range()), keys_(problem.keys()), group_(problem.group()) {
  const std::vector<Head> heads = MakeClasses(problem);
  of_class_.resize(heads.size());
  pool.ParallelFor(classes(), [&](int64_t c) {
    Class& mine = of_class_[c];
    if (stop.stopped()) return;
    mine.banded =
        heads[c].pattern->Stretches(heads[c].kv_head, q_range_, keys_.end, &mine.stretches);
    if (!mine.banded) mine.stretches.clear();
  });
  std::vector<int> by_rows;
  for (int c = 0; c < classes(); ++c) {
    if (!banded(c)) by_rows.push_back(c);
  }
  const int64_t first = q_range_.begin / kBlockTokens;
  const int64_t q_blocks = q_blocks_end() - first;
  const int64_t chunks = (q_blocks + kChunkBlocks - 1) / kChunkBlocks;
  for (const int c : by_rows) of_class_[c].chunks.resize(static_cast<size_t>(chunks));
  pool.ParallelFor(chunks * static_cast<int64_t>(by_rows.size()), [&](int64_t item) {
    const int c = by_rows[item / chunks];
    const int64_t chunk = item % chunks;
    const int64_t begin = first + chunk * kChunkBlocks;
    const int64_t end = std::min(begin + kChunkBlocks, q_blocks_end());
    of_class_[c].chunks[chunk] = Compile(heads[c], begin, end, stop);
  });
}

std::vector<RowTable::Head> RowTable::MakeClasses(const Problem& problem) {
  const Pattern& pattern = problem.pattern;
  std::vector<Head> heads;  // one of each class
  // By member and Pattern::HeadClass; what all members see together is a member -1.
  std::map<std::pair<int, int>, int> index_of;
  const auto class_of = [&](int member, int kv_head) {
    const Pattern& own = member < 0 ? pattern : pattern.Member(member);
    const auto [at, is_new] =
        index_of.emplace(std::pair{member, own.HeadClass(kv_head)}, static_cast<int>(heads.size()));
    if (is_new) heads.push_back({&own, kv_head});
    return at->second;
  };
  for (int head = 0; head < problem.kv_heads; ++head) class_of_.push_back(class_of(-1, head));
  for (int head = 0; head < problem.heads; ++head) {
    const int member = pattern.by_query_head() ? head % group_ : -1;
    query_class_of_.push_back(class_of(member, head / group_));
  }
  return heads;
}

RowTable::Chunk RowTable::Compile(const Head& head, int64_t q_begin, int64_t q_end,
                                  const Stop& stop) const {
  Chunk chunk;
  std::vector<TileRun> tiles;
  for (int64_t block = q_begin; block < q_end && !stop.stopped(); ++block) {
    chunk.begin.push_back(static_cast<uint32_t>(chunk.runs.size()));
    const TokenRange queries{std::max(block * kBlockTokens, q_range_.begin),
                             std::min((block + 1) * kBlockTokens, q_range_.end)};
    head.pattern->Row(head.kv_head, queries, keys_.end, &tiles);
    const size_t row_begin = chunk.runs.size();
    for (const TileRun& tile : tiles) {
      const Run run{static_cast<int32_t>(tile.blocks.first),
                    static_cast<int32_t>(tile.blocks.count),
                    static_cast<int32_t>(tile.blocks.step)};
      // Full and partial neighbours are one run here.
      if (chunk.runs.size() > row_begin && run.step == 1) {
        Run& back = chunk.runs.back();
        if (back.step == 1 && back.first + back.count == run.first) {
          back.count += run.count;
          continue;
        }
      }
      chunk.runs.push_back(run);
    }
  }
  chunk.begin.push_back(static_cast<uint32_t>(chunk.runs.size()));
  chunk.runs.shrink_to_fit();
  return chunk;
}

std::span<const RowTable::Run> RowTable::Row(int class_index, int64_t q_block) const {
  const int64_t offset = q_block - q_range_.begin / kBlockTokens;
  ANNULUS_CHECK(offset >= 0 && q_block < q_blocks_end());
  const Chunk& chunk = of_class_[class_index].chunks[offset / kChunkBlocks];
  const uint32_t* begin = &chunk.begin[offset % kChunkBlocks];
  return {chunk.runs.data() + begin[0], begin[1] - begin[0]};
}

const RowStretch* RowTable::StretchOf(int class_index, int64_t q_block) const {
  const std::vector<RowStretch>& stretches = Stretches(class_index);
  const auto at = std::upper_bound(
      stretches.begin(), stretches.end(), q_block,
      [](int64_t block, const RowStretch& stretch) { return block < stretch.q_end; });
  return at != stretches.end() && at->q_begin <= q_block ? &*at : nullptr;
}

int64_t RowTable::Queries(int64_t q_block) const {
  return std::min((q_block + 1) * kBlockTokens, q_range_.end) -
         std::max(q_block * kBlockTokens, q_range_.begin);
}

ReadCounts::Changes& ReadCounts::Of(int64_t step) {
  for (Changes& changes : changes_) {
    if (changes.step == step) return changes;
  }
  changes_.push_back({step, false, std::vector<int64_t>(counts_.size())});
  return changes_.back();
}

void ReadCounts::Add(const BlockRun& run, int64_t queries) {
  const int64_t step = run.count > 1 ? run.step : 1;
  Changes& changes = Of(step);
  changes.any = true;
  changes.at[run.first] += queries;
  const int64_t end = run.first + run.count * step;
  if (end < static_cast<int64_t>(counts_.size())) changes.at[end] -= queries;
}

void ReadCounts::AddRow(const RowTable& rows, int class_index, int64_t q_block) {
  const int64_t queries = rows.Queries(q_block);
  rows.ForEachRun(class_index, q_block, [&](const BlockRun& run) { Add(run, queries); });
}

void ReadCounts::AddRows(const RowTable& rows, int class_index, const BlockSet& q_blocks) {
  ForEachBlock(q_blocks, [&](int64_t q_block) { AddRow(rows, class_index, q_block); });
}

const std::vector<int64_t>& ReadCounts::Finish() {
  counts_.assign(counts_.size(), 0);
  const int64_t blocks = static_cast<int64_t>(counts_.size());
  for (Changes& changes : changes_) {
    if (!changes.any) continue;
    changes.any = false;
    // One pass sums up, adds and clears for the next count.
    int64_t* at = changes.at.data();
    const int64_t step = changes.step;
    for (int64_t b = 0; b < blocks; ++b) {
      counts_[b] += at[b];
      if (b + step < blocks) at[b + step] += at[b];
      at[b] = 0;
    }
  }
  return counts_;
}

BlockSet BlocksRead(const RowTable& rows, int class_index, const BlockSet& q_blocks) {
  std::vector<BlockRun> runs;
  if (rows.banded(class_index)) {
    ForEachStretch(rows, class_index, q_blocks, [&](const RowStretch& stretch, BlockRun part) {
      for (const RowBand& band : stretch.bands) AppendSeen(band, part, &runs);
    });
    return BlockSet::FromRuns(std::move(runs));
  }
  // Of the runs that begin alike the longest holds the others: what grows from row to row, as a
  // causal prefix or a stride does, leaves one run.
  std::map<std::pair<int64_t, int64_t>, int64_t> longest;  // first and step to count
  ForEachBlock(q_blocks, [&](int64_t q_block) {
    rows.ForEachRun(class_index, q_block, [&](const BlockRun& run) {
      int64_t& count = longest[{run.first, run.step}];
      count = std::max<int64_t>(count, run.count);
    });
  });
  for (const auto& [begin, count] : longest) runs.push_back({begin.first, count, begin.second});
  return BlockSet::FromRuns(std::move(runs));
}

void BlockCollector::Add(int64_t block) {
  if (block != end_) {
    CloseRange();
    begin_ = block;
  }
  end_ = block + 1;
}

void BlockCollector::CloseRange() {
  const int64_t length = end_ - begin_;
  if (length == 0) return;
  if (!ranges_.empty() && ranges_.back().length == length) {
    Ranges& back = ranges_.back();
    if (back.count == 1) back.distance = begin_ - back.first;
    if (begin_ == back.first + back.count * back.distance) {
      ++back.count;
      return;
    }
  }
  ranges_.push_back({begin_, length, 0, 1});
}

BlockSet BlockCollector::Finish() && {
  CloseRange();
  std::vector<BlockRun> runs;
  for (const Ranges& r : ranges_) {
    if (r.count > r.length) {
      for (int64_t i = 0; i < r.length; ++i) runs.push_back({r.first + i, r.count, r.distance});
    } else {
      for (int64_t i = 0; i < r.count; ++i) {
        runs.push_back({r.first + i * r.distance, r.length, 1});
      }
    }
  }
  return BlockSet::FromRuns(std::move(runs));
}

}  // namespace annulus
