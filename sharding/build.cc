#include "sharding/build.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus {
namespace {

// Keeps block numbers within 31 bits.
constexpr int64_t kTokensMax = int64_t{1} << 36;
constexpr int kDimMax = 1 << 16;

absl::Status CheckRange(absl::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", value, "; expected ", low, " to ", high));
}

// A block-cyclic unit that gives every group some of the rows.
PartitionSpec SpecForRows(PartitionSpec spec, int64_t q_blocks, int groups) {
  spec.unit_blocks = std::clamp<int64_t>((q_blocks + groups - 1) / groups, 1, spec.unit_blocks);
  return spec;
}

// SameBlocks, quick for sets that were made alike.
bool Same(const BlockSet& a, const BlockSet& b) {
  return a.runs() == b.runs() || a.SameBlocks(b);
}

}  // namespace

absl::Status CheckProblem(const Problem& problem) {
  ANNULUS_RETURN_IF_ERROR(CheckRange("kv_tokens", problem.kv_tokens, 1, kTokensMax));
  const int64_t q_tokens_max = problem.q_start.has_value() ? kTokensMax : problem.kv_tokens;
  ANNULUS_RETURN_IF_ERROR(CheckRange("q_tokens", problem.q_tokens, 1, q_tokens_max));
  ANNULUS_RETURN_IF_ERROR(
      CheckRange("q_start", problem.q_range().begin, 0, kTokensMax - problem.q_tokens));
  ANNULUS_RETURN_IF_ERROR(CheckRange("keys_end", problem.keys().end, 1, problem.kv_tokens));
  ANNULUS_RETURN_IF_ERROR(
      CheckRange("keys_begin", problem.keys().begin, 0, problem.keys().end - 1));
  ANNULUS_RETURN_IF_ERROR(CheckRange("heads", problem.heads, 1, kPlanHeadsMax));
  ANNULUS_RETURN_IF_ERROR(CheckRange("kv_heads", problem.kv_heads, 1, problem.heads));
  if (problem.heads % problem.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "heads: ", problem.heads, "; expected a multiple of kv_heads ", problem.kv_heads));
  }
  const __int128 pairs =
      static_cast<__int128>(problem.q_tokens) * problem.kv_tokens * problem.heads;
  if (pairs > std::numeric_limits<int64_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("q_tokens x kv_tokens x heads: ", problem.q_tokens, " x ", problem.kv_tokens,
                     " x ", problem.heads, "; expected less than 2^63 pairs"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckRange("head_dim", problem.head_dim, 1, kDimMax));
  ANNULUS_RETURN_IF_ERROR(CheckRange("v_head_dim", problem.v_head_dim, 1,
                                     problem.v_is_k_prefix ? problem.head_dim : kDimMax));
  ANNULUS_RETURN_IF_ERROR(
      CheckRange("home_partition unit", problem.home_partition.unit_blocks, 1, kUnitBlocksMax));
  if (problem.pattern.kv_heads() != problem.kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat("pattern: ", problem.pattern.kv_heads(),
                                                   " kv heads; expected ", problem.kv_heads));
  }
  const Layout& kv = problem.kv;
  if (kv.heads() != problem.heads || kv.kv_heads() != problem.kv_heads) {
    return absl::InvalidArgumentError(absl::StrCat("layout: ", kv.heads(), " heads, ",
                                                   kv.kv_heads(), " kv heads; expected ",
                                                   problem.heads, " and ", problem.kv_heads));
  }
  if (kv.tokens().first_block() != 0 || kv.tokens().blocks() < BlocksOf(problem.kv_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout: blocks ", kv.tokens().first_block(), " to ",
                     kv.tokens().first_block() + kv.tokens().blocks(), "; expected 0 to at least ",
                     BlocksOf(problem.kv_tokens)));
  }
  return absl::OkStatus();
}

absl::StatusOr<Plan> BuildPlan(PlanKind kind, const Problem& problem, int stages,
                               const Stop& stop) {
  ANNULUS_RETURN_IF_ERROR(CheckProblem(problem));
  ANNULUS_RETURN_IF_ERROR(CheckRange("stages", stages, 0, kStagesMax));
  if (!NeedsRows(kind, problem)) return BuildRing(kind, problem, nullptr);
  ThreadPool pool(PlanningThreads(problem));
  const RowTable rows(problem, pool, stop);
  ANNULUS_RETURN_IF_ERROR(stop.status());
  Plan plan = kind == PlanKind::kGroupCast ? GroupCast(problem, rows, pool, stop).Build(stages)
              : kind == PlanKind::kPassQ   ? BuildPassQ(problem, rows, stop)
                                           : BuildRing(kind, problem, &rows);
  ANNULUS_RETURN_IF_ERROR(stop.status());
  return plan;
}

Partition RowPartition(const Problem& problem, PartitionSpec spec, int groups) {
  const int64_t first = problem.q_range().begin / kBlockTokens;
  const int64_t q_blocks = BlocksOf(problem.q_range().end) - first;
  if (first > 0 || q_blocks != BlocksOf(problem.kv_tokens)) {
    spec = SpecForRows(spec, q_blocks, groups);
  }
  return Partition(spec, first, q_blocks, groups);
}

std::vector<HeadBlocks> GroupHeads(HeadRange heads, absl::FunctionRef<BlockSet(int)> blocks_of) {
  std::vector<HeadBlocks> groups;
  for (int head = heads.first; head < heads.end(); ++head) {
    BlockSet blocks = blocks_of(head);
    if (blocks.empty()) continue;
    if (!groups.empty() && groups.back().heads.end() == head &&
        Same(groups.back().blocks, blocks)) {
      ++groups.back().heads.count;
    } else {
      groups.push_back({{head, 1}, std::move(blocks)});
    }
  }
  return groups;
}

void MoveRows(const Problem& problem, Transfer::Kind kind, int rank, HeadRange heads,
              const BlockSet& rows, std::vector<Transfer>* transfers) {
  if (heads.count == 0 || rows.empty()) return;
  const auto move = [&](int home, BlockSet blocks) {
    if (blocks.empty() || home == rank) return;
    const bool to_rank = kind == Transfer::Kind::kQuery;
    transfers->push_back(
        {kind, to_rank ? home : rank, to_rank ? rank : home, heads, std::move(blocks)});
  };
  if (problem.home == Home::kCaller) return move(kCaller, rows);
  if (rows.Subtract(problem.HomeRows(rank)).empty()) return;
  for (int home = 0; home < problem.world(); ++home) {
    move(home, problem.HomeRows(home).Intersect(rows));
  }
}

std::vector<HeadBlocks> NotHeld(const Problem& problem, int rank,
                                const std::vector<HeadBlocks>& wanted) {
  const HeadRanges& held_heads = problem.kv.KvHeads(rank);
  const BlockSet held = problem.HeldBlocks(rank);
  std::vector<HeadBlocks> missing;
  for (const HeadBlocks& want : wanted) {
    const auto add = [&](int first, int end, BlockSet blocks) {
      if (end > first && !blocks.empty()) {
        missing.push_back({{first, end - first}, std::move(blocks)});
      }
    };
    int at = want.heads.first;
    for (const HeadRange& held_range : held_heads) {
      const HeadRange both = Intersect(want.heads, held_range);
      if (both.count == 0) continue;
      add(at, both.first, want.blocks);
      add(both.first, both.end(), want.blocks.Subtract(held));
      at = both.end();
    }
    add(at, want.heads.end(), want.blocks);
  }
  return missing;
}

void FetchKv(const Problem& problem, int rank, const std::vector<HeadBlocks>& wanted,
             std::vector<Transfer>* transfers) {
  const Layout& kv = problem.kv;
  for (const HeadBlocks& want : NotHeld(problem, rank, wanted)) {
    for (int group = 0; group < kv.mesh().token_groups; ++group) {
      const BlockSet blocks = kv.tokens().BlocksOf(group).Intersect(want.blocks);
      if (blocks.empty()) continue;
      int head = want.heads.first;
      while (head < want.heads.end()) {
        const int source = kv.Source(head, group);
        HeadRange same{head, 0};
        while (same.end() < want.heads.end() && kv.Source(same.end(), group) == source) {
          ++same.count;
        }
        transfers->push_back({Transfer::Kind::kKv, source, rank, same, blocks});
        head = same.end();
      }
    }
  }
}

}  // namespace annulus
