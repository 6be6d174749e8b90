#include "runtime/engine/local_ranks.h"

#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "comm/local/local_exchange.h"
#include "runtime/engine/packed_pages.h"
#include "runtime/engine/tiles.h"
#include "runtime/engine/wire_rows.h"

namespace annulus {
namespace {

void CopyRows(const TensorView& from, TokenRange tokens, int head, std::byte* to) {
  const size_t row_bytes = static_cast<size_t>(from.dim) * SizeOf(from.dtype);
  for (int64_t t = tokens.begin; t < tokens.end; ++t, to += row_bytes) {
    std::memcpy(to, from.Row(t, head), row_bytes);
  }
}

// Copies the pages that `rank` holds to `packed`, in the space.
absl::StatusOr<KvTable> CopyPages(const Problem& problem, int rank, const TensorView& k,
                                  const TensorView& v, MemorySpace& space, Buffer* packed) {
  ANNULUS_CHECK(problem.kv.KvHeads(rank).size() <= 1);  // owners' KV is cut over tokens alone
  const HeadRange heads = SpanOf(problem.kv.KvHeads(rank));
  const BlockSet held = problem.HeldBlocks(rank);
  Buffer host(PackedBytes(problem, heads, held));
  for (const PackedPage& page : PackedPagesOf(problem, heads, held)) {
    std::byte* to = host.data() + page.at;
    CopyRows(k, page.tokens, page.head, to);
    if (problem.v_is_k_prefix) continue;
    CopyRows(v, page.tokens, page.head,
             to + static_cast<size_t>(page.tokens.size()) * KRowBytes(problem));
  }
  ANNULUS_ASSIGN_OR_RETURN(*packed, MovedTo(space, std::move(host)));
  return TableOf(problem, heads, held, packed->data(), space.kind());
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

// The first row without an answer, whichever rank has it.
absl::Status FirstOverflow(const std::vector<absl::StatusOr<RankResult>>& results) {
  std::optional<Overflow> first;
  for (const absl::StatusOr<RankResult>& result : results) {
    const std::optional<Overflow>& other = result->overflow;
    if (other.has_value() && (!first.has_value() || other->row < first->row)) first = other;
  }
  return first.has_value() ? OverflowError(*first) : absl::OkStatus();
}

}  // namespace

absl::StatusOr<LocalRanks> LocalRanks::Create(const Plan& plan, const TensorView& q,
                                              const TensorView& k, const TensorView& v,
                                              Backend& backend) {
  LocalRanks ranks(plan, backend);
  const Problem& problem = plan.problem();
  const Rows all(problem.QueryBlocks(), problem.q_range());
  for (int r = 0; r < plan.world(); ++r) {
    Rank& rank = ranks.ranks_.emplace_back();
    const Rows rows(plan.HomeRows(r), problem.q_range());
    Buffer packed(static_cast<size_t>(rows.count() * problem.heads * problem.head_dim) *
                  SizeOf(problem.dtype));
    PackQueryRows(problem, rows, {0, problem.heads}, all, q, packed.data());
    ANNULUS_ASSIGN_OR_RETURN(rank.q_bytes, MovedTo(backend.memory(), std::move(packed)));
    rank.q = TensorView::Contiguous(rank.q_bytes.data(), problem.dtype, rows.count(), problem.heads,
                                    problem.head_dim);
    ANNULUS_ASSIGN_OR_RETURN(rank.table,
                             CopyPages(problem, r, k, v, backend.memory(), &rank.pages));
  }
  return ranks;
}

absl::StatusOr<LocalRun> LocalRanks::Run(float scale, const std::atomic<bool>* cancel) const {
  const Problem& problem = plan_->problem();
  const std::vector<std::unique_ptr<Exchange>> exchanges = MakeLocalExchanges(plan_->world());
  std::vector<absl::StatusOr<RankResult>> results(ranks_.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    threads.emplace_back([&, rank] {
      RankTask task;
      task.plan = plan_;
      task.rank = static_cast<int>(rank);
      task.q = ranks_[rank].q;
      task.kv = &ranks_[rank].table;
      task.scale = scale;
      task.cancel = cancel;
      results[rank] = RunRank(task, *backend_, *exchanges[rank]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ANNULUS_RETURN_IF_ERROR(FirstCause(results));
  ANNULUS_RETURN_IF_ERROR(FirstOverflow(results));

  LocalRun run;
  run.result = Partial(problem.q_tokens, problem.heads, problem.v_head_dim);
  const Rows all(problem.QueryBlocks(), problem.q_range());
  const HeadRange heads{0, problem.heads};
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    RankResult& result = *results[rank];
    const Rows rows(plan_->HomeRows(static_cast<int>(rank)), problem.q_range());
    ANNULUS_ASSIGN_OR_RETURN(Partial home, ToHost(backend_->memory(), result.home));
    ANNULUS_RETURN_IF_ERROR(
        MergeRows(HostMemory(), all, heads, run.result.view(), rows, heads, home.view()));
    run.bytes_moved += result.bytes_sent;
    if (result.compute_s >= run.compute_s) {
      run.compute_s = result.compute_s;
      run.wait_s = result.wait_s;
    }
  }
  return run;
}

}  // namespace annulus
