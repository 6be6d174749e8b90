// The ring family: ring, ring-contiguous, heads and mesh differ only in the layout they compute on.
// First queries and KV go from where they lie to that layout, then KV shards go round the token
// groups of each head group, then partials go home. With one token group (heads: S2 over heads,
// Ulysses, arXiv 2309.14509) the ring has one step; with one head group (ring attention, arXiv
// 2310.01889; zigzag: 2311.09431) there is nothing to redistribute.
#include <utility>

#include "sharding/build.h"

namespace annulus {
namespace {

MeshShape TargetMesh(PlanKind kind, int world) {
  if (kind == PlanKind::kHeads) return {world, 1};
  if (kind == PlanKind::kMesh) return MeshOf(world);
  return {1, world};
}

PartitionSpec TargetSpec(PlanKind kind, const Problem& problem) {
  if (kind == PlanKind::kRingContiguous) return {PartitionKind::kContiguous, 1};
  return problem.home_partition;
}

// The layout to compute on: the KV's own if it has the right shape, so that nothing moves.
Layout TargetLayout(PlanKind kind, const Problem& problem) {
  const MeshShape mesh = TargetMesh(kind, problem.world());
  const PartitionSpec spec = TargetSpec(kind, problem);
  const bool any_spec = kind != PlanKind::kRingContiguous;
  if (problem.kv.mesh() == mesh && (any_spec || problem.kv.tokens().spec() == spec)) {
    return problem.kv;
  }
  const Partition tokens(spec, 0, BlocksOf(problem.kv_tokens), mesh.token_groups);
  return Layout(mesh, problem.heads, problem.kv_heads, tokens);
}

class RingBuilder {
 public:
  RingBuilder(PlanKind kind, const Problem& problem, const RowTable* rows)
      : problem_(problem), target_(TargetLayout(kind, problem)) {
    const int groups = target_.mesh().token_groups;
    const Partition row_cut = RowPartition(problem, TargetSpec(kind, problem), groups);
    for (int group = 0; group < groups; ++group) {
      rows_.push_back(row_cut.BlocksOf(group));
      kv_.push_back(target_.tokens().BlocksOf(group).Intersect(problem.KvBlocks()));
    }
    // A ring passes whole shards; once heads are apart, pages that none of the query rows sees
    // under that head stay where they are.
    std::vector<BlockSet> read;  // by class
    if (NeedsRows(kind, problem)) {
      for (int c = 0; c < rows->classes(); ++c) {
        read.push_back(BlocksRead(*rows, c, problem.QueryBlocks()));
      }
    }
    for (int rank = 0; rank < problem.world(); ++rank) {
      const BlockSet& kv = kv_[target_.TokenGroup(rank)];
      shards_.push_back(GroupHeads(target_.KvHeads(rank), [&](int head) {
        return read.empty() ? kv : kv.Intersect(read[rows->KvClass(head)]);
      }));
    }
  }

  std::vector<Step> Build() const {
    std::vector<Step> steps;
    const auto add_if_any = [&steps](Step step) {
      if (!step.transfers.empty() || !step.computes.empty()) steps.push_back(std::move(step));
    };
    add_if_any(Redistribute());
    for (int turn = 0; turn < target_.mesh().token_groups; ++turn) add_if_any(Turn(turn));
    add_if_any(GoHome());
    return steps;
  }

 private:
  const BlockSet& RowsOf(int rank) const { return rows_[target_.TokenGroup(rank)]; }

  Step Redistribute() const {
    Step step;
    for (int rank = 0; rank < problem_.world(); ++rank) {
      if (target_ != problem_.kv) FetchKv(problem_, rank, shards_[rank], &step.transfers);
      MoveRows(problem_, Transfer::Kind::kQuery, rank, target_.QueryHeads(rank), RowsOf(rank),
               &step.transfers);
    }
    return step;
  }

  // Each rank computes on the shard it has and passes it on. A shard that has been passed on is
  // dropped, so that a rank has room for two besides its own.
  Step Turn(int turn) const {
    Step step;
    step.drop_received_kv = true;
    const int groups = target_.mesh().token_groups;
    for (int rank = 0; rank < problem_.world(); ++rank) {
      const int head_group = target_.HeadGroup(rank), group = target_.TokenGroup(rank);
      const int shard = (group + groups - turn) % groups;
      const HeadRange heads = target_.QueryHeads(rank);
      if (turn + 1 < groups) {
        Pass(rank, target_.Rank(head_group, (group + 1) % groups),
             shards_[target_.Rank(head_group, shard)], &step.transfers);
      }
      if (heads.count > 0 && !RowsOf(rank).empty() && !kv_[shard].empty()) {
        step.computes.push_back({rank, RowsOf(rank), heads, kv_[shard]});
      }
    }
    return step;
  }

  // Sends a shard, less what the next rank of the ring has had from the start.
  void Pass(int rank, int next, const std::vector<HeadBlocks>& shard,
            std::vector<Transfer>* transfers) const {
    const bool disjoint = target_ == problem_.kv;
    for (const HeadBlocks& piece : disjoint ? shard : NotHeld(problem_, next, shard)) {
      transfers->push_back({Transfer::Kind::kKv, rank, next, piece.heads, piece.blocks});
    }
  }

  Step GoHome() const {
    Step step;
    for (int rank = 0; rank < problem_.world(); ++rank) {
      MoveRows(problem_, Transfer::Kind::kPartial, rank, target_.QueryHeads(rank), RowsOf(rank),
               &step.transfers);
    }
    return step;
  }

  const Problem& problem_;
  const Layout target_;
  std::vector<BlockSet> rows_;                   // by token group: query blocks computed there
  std::vector<BlockSet> kv_;                     // by token group: its KV blocks
  std::vector<std::vector<HeadBlocks>> shards_;  // by rank: the KV that goes round from there
};

}  // namespace

bool NeedsRows(PlanKind kind, const Problem& problem) {
  if (kind == PlanKind::kGroupCast || kind == PlanKind::kPassQ) return true;
  return TargetMesh(kind, problem.world()).head_groups > 1;
}

Plan BuildRing(PlanKind kind, const Problem& problem, const RowTable* rows) {
  return Plan(kind, problem, RingBuilder(kind, problem, rows).Build());
}

}  // namespace annulus
