// All ranks of a plan in threads of one process.
#include <thread>
#include <utility>
#include <vector>

#include "base/status.h"
#include "comm/local/local_exchange.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/tiles.h"
#include "runtime/engine/wire_rows.h"

namespace annulus {
namespace {

// The pages that `rank` holds at the start, as views of the whole tensors; no others, so that a
// plan that forgets to send a page fails instead of reading it anyway.
KvTable HeldPages(const Problem& problem, int rank, const KvTable& all) {
  const HeadRange heads = problem.kv.KvHeads(rank);
  KvTable held(problem.dtype, heads.first, heads.count, problem.head_dim, problem.v_head_dim,
               BlocksOf(problem.kv_tokens));
  for (int64_t block : problem.kv.Blocks(rank).ToVector()) {
    for (int h = heads.first; h < heads.end(); ++h) held.Set(h, block, all.page(h, block));
  }
  return held;
}

// The rows of `q` [q_tokens, heads, head_dim] that start at `rank`.
Tensor HomeQueries(const Problem& problem, const Rows& rows, const TensorView& q) {
  Tensor mine(problem.dtype, rows.count(), problem.heads, problem.head_dim);
  int64_t to = 0;
  for (const TokenRange& range : rows.ranges()) {
    for (int64_t position = range.begin; position < range.end; ++position, ++to) {
      for (int h = 0; h < problem.heads; ++h) {
        const size_t offset = static_cast<size_t>((to * problem.heads + h) * problem.head_dim);
        Convert(q.Row(position - problem.q_range().begin, h), q.dtype,
                mine.data() + offset * SizeOf(problem.dtype), problem.dtype, problem.head_dim);
      }
    }
  }
  return mine;
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

absl::StatusOr<LocalRun> RunLocally(const Plan& plan, const TensorView& q, const TensorView& k,
                                    const TensorView& v, float scale, Backend& backend) {
  const Problem& problem = plan.problem();
  const KvTable all_pages = KvTable::FromTensors(k, problem.v_is_k_prefix ? k : v);
  std::vector<std::unique_ptr<Exchange>> exchanges = MakeLocalExchanges(plan.world());
  std::vector<absl::StatusOr<RankResult>> results(static_cast<size_t>(plan.world()));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < plan.world(); ++rank) {
    threads.emplace_back([&, rank] {
      const Rows rows(plan.HomeRows(rank), problem.q_range());
      const KvTable held = HeldPages(problem, rank, all_pages);
      const Tensor mine = HomeQueries(problem, rows, q);
      RankTask task;
      task.plan = &plan;
      task.rank = rank;
      task.q = mine;
      task.kv = &held;
      task.scale = scale;
      results[static_cast<size_t>(rank)] =
          RunRank(task, backend, *exchanges[static_cast<size_t>(rank)]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ANNULUS_RETURN_IF_ERROR(FirstCause(results));

  LocalRun run;
  run.result = Partial(problem.q_tokens, problem.heads, problem.v_head_dim);
  const int64_t first_block = problem.q_range().begin / kBlockTokens;
  const Rows all(BlockSet::Range(first_block, BlocksOf(problem.kv_tokens) - first_block),
                 problem.q_range());
  const HeadRange heads{0, problem.heads};
  for (int rank = 0; rank < plan.world(); ++rank) {
    RankResult& result = *results[static_cast<size_t>(rank)];
    const Rows rows(plan.HomeRows(rank), problem.q_range());
    MergeRows(all, heads, run.result.view(), rows, heads, result.home.view());
    run.bytes_moved += result.bytes_sent;
  }
  return run;
}

}  // namespace annulus
