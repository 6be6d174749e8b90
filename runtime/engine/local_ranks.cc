#include "runtime/engine/local_ranks.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "base/status.h"
#include "comm/local/local_exchange.h"
#include "runtime/engine/tiles.h"
#include "runtime/engine/wire_rows.h"

namespace annulus {
namespace {

// Copies the pages that `rank` holds to `pages`: head by head, so that a head's pages follow each
// other in memory, each page its K rows, then its V rows.
KvTable CopyPages(const Problem& problem, int rank, const TensorView& k, const TensorView& v,
                  Buffer* pages) {
  const HeadRange heads = problem.kv.KvHeads(rank);
  const BlockSet held = problem.HeldBlocks(rank);
  const size_t k_row = static_cast<size_t>(problem.head_dim) * SizeOf(problem.dtype);
  const size_t v_row =
      problem.v_is_k_prefix ? 0 : static_cast<size_t>(problem.v_head_dim) * SizeOf(problem.dtype);
  *pages = Buffer(static_cast<size_t>(held.TokenCount(problem.kv_tokens) * heads.count) *
                  (k_row + v_row));
  KvTable table(problem.dtype, heads.first, heads.count, problem.head_dim, problem.v_head_dim,
                BlocksOf(problem.kv_tokens));
  std::byte* to = pages->data();
  const std::vector<int64_t> blocks = held.ToVector();
  for (int h = heads.first; h < heads.end(); ++h) {
    for (int64_t block : blocks) {
      const int64_t begin = block * kBlockTokens;
      const int64_t tokens = std::min(kBlockTokens, problem.kv_tokens - begin);
      KvPage page = {to, to, problem.head_dim, problem.head_dim};
      for (int64_t t = 0; t < tokens; ++t, to += k_row) std::memcpy(to, k.Row(begin + t, h), k_row);
      if (!problem.v_is_k_prefix) {
        page.v = to;
        page.v_row_stride = problem.v_head_dim;
        for (int64_t t = 0; t < tokens; ++t, to += v_row) {
          std::memcpy(to, v.Row(begin + t, h), v_row);
        }
      }
      table.Set(h, block, page);
    }
  }
  return table;
}

// The failure that explains the others: a rank that only lost its peers says UNAVAILABLE.
absl::Status FirstCause(const std::vector<absl::StatusOr<RankResult>>& results) {
  absl::Status cause;
  for (const absl::StatusOr<RankResult>& result : results) {
    if (result.ok()) continue;
    if (cause.ok() || (absl::IsUnavailable(cause) && !absl::IsUnavailable(result.status()))) {
      cause = result.status();
    }
  }
  return cause;
}

}  // namespace

LocalRanks::LocalRanks(const Plan& plan, const TensorView& q, const TensorView& k,
                       const TensorView& v)
    : plan_(plan), ranks_(static_cast<size_t>(plan.world())) {
  const Problem& problem = plan.problem();
  const Rows all(problem.QueryBlocks(), problem.q_range());
  for (int r = 0; r < plan.world(); ++r) {
    Rank& rank = ranks_[static_cast<size_t>(r)];
    const Rows rows(plan.HomeRows(r), problem.q_range());
    rank.q_bytes = PackQueryRows(problem, rows, {0, problem.heads}, all, q);
    rank.q = TensorView::Contiguous(rank.q_bytes.data(), problem.dtype, rows.count(), problem.heads,
                                    problem.head_dim);
    rank.table = CopyPages(problem, r, k, v, &rank.pages);
  }
}

absl::StatusOr<LocalRun> LocalRanks::Run(float scale, Backend& backend) const {
  const Problem& problem = plan_.problem();
  const std::vector<std::unique_ptr<Exchange>> exchanges = MakeLocalExchanges(plan_.world());
  std::vector<absl::StatusOr<RankResult>> results(ranks_.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    threads.emplace_back([&, rank] {
      RankTask task;
      task.plan = &plan_;
      task.rank = static_cast<int>(rank);
      task.q = ranks_[rank].q;
      task.kv = &ranks_[rank].table;
      task.scale = scale;
      results[rank] = RunRank(task, backend, *exchanges[rank]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ANNULUS_RETURN_IF_ERROR(FirstCause(results));

  LocalRun run;
  run.result = Partial(problem.q_tokens, problem.heads, problem.v_head_dim);
  const Rows all(problem.QueryBlocks(), problem.q_range());
  const HeadRange heads{0, problem.heads};
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    RankResult& result = *results[rank];
    const Rows rows(plan_.HomeRows(static_cast<int>(rank)), problem.q_range());
    MergeRows(all, heads, run.result.view(), rows, heads, result.home.view());
    run.bytes_moved += result.bytes_sent;
    if (result.compute_s >= run.compute_s) {
      run.compute_s = result.compute_s;
      run.wait_s = result.wait_s;
    }
  }
  return run;
}

}  // namespace annulus
