#include "sharding/work.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <tuple>
#include <utility>

namespace annulus {
namespace {

// Sums over KV blocks of how many queries read them and whether any does, weighted by tokens.
class BlockSums {
 public:
  explicit BlockSums(const RowTable& rows)
      : rows_(rows), reads_(rows.kv_blocks()), below_(static_cast<size_t>(rows.kv_blocks()) + 1) {}

  // Turns to these rows.
  void Reset(int class_index, const BlockSet& q_blocks) {
    reads_.AddRows(rows_, class_index, q_blocks);
    const std::vector<int64_t>& counts = reads_.Finish();
    for (size_t b = 0; b < counts.size(); ++b) {
      const auto block = static_cast<int64_t>(b);
      const int64_t tokens = std::min(kBlockTokens, rows_.keys().end - block * kBlockTokens);
      below_[b + 1].work_pairs = below_[b].work_pairs + counts[b] * rows_.Keys({block, 1, 1});
      below_[b + 1].tokens_read = below_[b].tokens_read + (counts[b] > 0 ? tokens : 0);
    }
  }

  ComputeLoad Over(const BlockSet& kv_blocks) const {
    ComputeLoad sum;
    for (const BlockRun& run : kv_blocks.runs()) {
      // A run without a step is the difference of two sums.
      const int64_t length = run.step == 1 ? run.count : 1;
      for (int64_t i = 0; i < run.count; i += length) {
        const int64_t begin = run.first + i * run.step;
        const ComputeLoad &low = below_[begin], &high = below_[begin + length];
        sum.work_pairs += high.work_pairs - low.work_pairs;
        sum.tokens_read += high.tokens_read - low.tokens_read;
      }
    }
    return sum;
  }

 private:
  const RowTable& rows_;
  ReadCounts reads_;
  std::vector<ComputeLoad> below_;  // over blocks [0, b)
};

struct RunsLess {
  bool operator()(const BlockSet* a, const BlockSet* b) const {
    return std::lexicographical_compare(a->runs().begin(), a->runs().end(), b->runs().begin(),
                                        b->runs().end(), [](const BlockRun& x, const BlockRun& y) {
                                          return std::tie(x.first, x.count, x.step) <
                                                 std::tie(y.first, y.count, y.step);
                                        });
  }
};

// A compute and where its load goes.
struct Item {
  const Compute* compute;
  ComputeLoad* load;
};

// How many query heads and KV heads of a class are in `heads`.
std::pair<int, int> HeadsOfClass(const RowTable& rows, HeadRange heads, int class_index) {
  int count = 0, kv_count = 0, last = -1;
  for (int head = heads.first; head < heads.end(); ++head) {
    if (rows.QueryClass(head) != class_index) continue;
    ++count;
    if (head / rows.group() != last) ++kv_count;
    last = head / rows.group();
  }
  return {count, kv_count};
}

// One compute's load, band by band. `read` is what its rows read.
ComputeLoad LoadByBands(const RowTable& rows, int class_index, const Compute& compute,
                        const BlockSet& read) {
  // The first and the last block may hold fewer keys than 64.
  std::vector<BlockRun> short_blocks;
  for (const int64_t block : {rows.keys().begin / kBlockTokens, rows.kv_blocks() - 1}) {
    const BlockRun run{block, 1, 1};
    const bool is_known = !short_blocks.empty() && short_blocks[0] == run;
    if (rows.Keys(run) < kBlockTokens && !is_known) short_blocks.push_back(run);
  }
  ComputeLoad load;
  const auto keys = [&](const RowBand& band, const BlockRun& q_blocks, const BlockRun& kv) {
    if (kv.last() < band.Begin(q_blocks.first) || kv.first >= band.End(q_blocks.last())) {
      return int64_t{0};
    }
    int64_t seen = kBlockTokens * BlocksSeen(band, q_blocks, kv);
    for (const BlockRun& run : short_blocks) {
      if (!kv.Contains(run.first)) continue;
      seen -= (kBlockTokens - rows.Keys(run)) * BlocksSeen(band, q_blocks, run);
    }
    return seen;
  };
  ForEachStretch(rows, class_index, compute.q_blocks,
                 [&](const RowStretch& stretch, const BlockRun& part) {
                   // A query block that is no whole one is a stretch by itself.
                   const int64_t queries = rows.Queries(part.first);
                   for (const RowBand& band : stretch.bands) {
                     for (const BlockRun& kv : compute.kv_blocks.runs()) {
                       load.work_pairs += queries * keys(band, part, kv);
                     }
                   }
                 });
  load.tokens_read = read.Intersect(compute.kv_blocks).TokenCount(rows.keys().end);
  return load;
}

// One compute's load, run by run: for few runs in a long context.
ComputeLoad LoadByRuns(const RowTable& rows, int class_index, const Compute& compute) {
  ComputeLoad load;
  ForEachBlock(compute.q_blocks, [&](int64_t q_block) {
    int64_t tokens = 0;
    rows.ForEachRun(class_index, q_block, [&](const BlockRun& run) {
      for (const BlockRun& kv : compute.kv_blocks.runs()) {
        const BlockRun common = Intersect(run, kv);
        if (common.count > 0) tokens += rows.Keys(common);
      }
    });
    load.work_pairs += tokens * rows.Queries(q_block);
  });
  load.tokens_read = BlocksRead(rows, class_index, compute.q_blocks)
                         .Intersect(compute.kv_blocks)
                         .TokenCount(rows.keys().end);
  return load;
}

// Whether that is less than counting every block of the context once for all of `items`.
bool RunsAreFewer(const RowTable& rows, int class_index, const std::vector<Item>& items) {
  constexpr int64_t kBlocksPerPair = 16;  // that are counted while two runs are intersected
  int64_t row_runs = 0, kv_runs = 0;
  ForEachBlock(items.front().compute->q_blocks, [&](int64_t q_block) {
    rows.ForEachRun(class_index, q_block, [&](const BlockRun&) { ++row_runs; });
  });
  for (const Item& item : items) {
    kv_runs += static_cast<int64_t>(item.compute->kv_blocks.runs().size());
  }
  return row_runs * kv_runs * kBlocksPerPair < rows.kv_blocks();
}

// Computes on the same rows share the sums over what those rows read: that is nearly all of the
// cost of planning.
void Weigh(const RowTable& rows, const std::vector<Item>& items, BlockSums* sums) {
  int64_t queries = 0;
  ForEachBlock(items.front().compute->q_blocks,
               [&](int64_t q_block) { queries += rows.Queries(q_block); });
  for (int c = 0; c < rows.classes(); ++c) {
    bool ready = false;
    const bool banded = rows.banded(c);
    const bool by_runs = !banded && RunsAreFewer(rows, c, items);
    const BlockSet read =
        banded ? BlocksRead(rows, c, items.front().compute->q_blocks) : BlockSet();
    HeadRange last;
    std::pair<int, int> heads;
    for (const Item& item : items) {
      if (last != item.compute->heads) {
        last = item.compute->heads;
        heads = HeadsOfClass(rows, last, c);
      }
      if (heads.first == 0) continue;
      if (!ready && !banded && !by_runs) sums->Reset(c, item.compute->q_blocks);
      ready = true;
      const ComputeLoad load = banded    ? LoadByBands(rows, c, *item.compute, read)
                               : by_runs ? LoadByRuns(rows, c, *item.compute)
                                         : sums->Over(item.compute->kv_blocks);
      item.load->work_pairs += load.work_pairs * heads.first;
      item.load->tokens_read += load.tokens_read * heads.second;
      if (load.work_pairs > 0) {
        item.load->partial_rows += queries * heads.first;
        item.load->launches = 1;
      }
    }
  }
}

}  // namespace

int64_t RowWork(const RowTable& rows, int class_index, int64_t q_block) {
  int64_t keys = 0;
  rows.ForEachRun(class_index, q_block, [&](const BlockRun& run) { keys += rows.Keys(run); });
  return keys * rows.Queries(q_block);
}

int64_t WorkOf(const RowTable& rows, int class_index, const BlockSet& q_blocks) {
  if (rows.banded(class_index)) {
    const int64_t first = rows.keys().begin / kBlockTokens;
    const BlockSet all = BlockSet::Range(first, rows.kv_blocks() - first);
    return LoadByBands(rows, class_index, {0, q_blocks, {}, all}, {}).work_pairs;
  }
  int64_t work = 0;
  ForEachBlock(q_blocks, [&](int64_t q_block) { work += RowWork(rows, class_index, q_block); });
  return work;
}

std::vector<PlanLoads> ComputeLoads(std::span<const Plan* const> plans, const RowTable& rows,
                                    ThreadPool& pool, const Stop& stop) {
  std::vector<PlanLoads> loads(plans.size());
  std::map<const BlockSet*, std::vector<Item>, RunsLess> by_rows;
  for (size_t i = 0; i < plans.size(); ++i) {
    for (const Round& round : plans[i]->rounds()) {
      std::vector<ComputeLoad>& of_round = loads[i].emplace_back(round.computes.size());
      for (size_t c = 0; c < round.computes.size(); ++c) {
        by_rows[&round.computes[c].q_blocks].push_back({&round.computes[c], &of_round[c]});
      }
    }
  }
  std::vector<const std::vector<Item>*> work;
  for (const auto& [q_blocks, items] : by_rows) work.push_back(&items);
  std::atomic<size_t> next{0};
  pool.ParallelFor(pool.threads(), [&](int64_t) {
    BlockSums sums(rows);
    for (size_t i = next++; i < work.size() && !stop.stopped(); i = next++) {
      Weigh(rows, *work[i], &sums);
    }
  });
  return loads;
}

PlanLoads ComputeLoads(const Plan& plan) {
  ThreadPool pool(PlanningThreads(plan.problem()));
  const RowTable rows(plan.problem(), pool);
  const Plan* plans[] = {&plan};
  return std::move(ComputeLoads(plans, rows, pool)[0]);
}

}  // namespace annulus
