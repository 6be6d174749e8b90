// The ring family: ring, ring-contiguous, heads and mesh differ only in the layout they compute on.
// First queries and KV go from where they lie to that layout, then KV shards go round the token
// groups of each head group, then partials go home. With one token group (heads: S2 over heads,
// Ulysses, arXiv 2309.14509) the ring has one round; with one head group (ring attention, arXiv
// 2310.01889; zigzag: 2311.09431) there is nothing to redistribute.
#include <map>
#include <utility>
#include <vector>

#include "sharding/build.h"
#include "sharding/ring_cut.h"

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
  return Layout(mesh, HeadMap::Even(mesh.head_groups, problem.heads, problem.kv_heads), tokens);
}

bool HeadsDiffer(const Pattern& pattern) {
  for (int head = 1; head < pattern.kv_heads(); ++head) {
    if (pattern.HeadClass(head) != pattern.HeadClass(0)) return true;
  }
  return pattern.by_query_head();
}

class RingBuilder {
 public:
  RingBuilder(PlanKind kind, const Problem& problem, const RowTable* rows)
      : problem_(problem), target_(TargetLayout(kind, problem)) {
    rows = NeedsRows(kind, problem) ? rows : nullptr;
    const bool heads_lie = target_.mesh() == problem.kv.mesh();
    cut_ = CutRing(problem, target_, heads_lie, TargetSpec(kind, problem), rows);
    for (int group = 0; group < target_.mesh().token_groups; ++group) {
      kv_.push_back(target_.tokens().BlocksOf(group).Intersect(problem.KvBlocks()));
    }
    std::vector<std::vector<BlockSet>> read;  // by head group, by KV head
    for (int group = 0; group < target_.mesh().head_groups; ++group) {
      read.push_back(Read(group, rows));
    }
    for (int rank = 0; rank < problem.world(); ++rank) {
      const BlockSet& kv = kv_[target_.TokenGroup(rank)];
      const std::vector<BlockSet>& here = read[target_.HeadGroup(rank)];
      shards_.push_back(
          GroupHeads({0, problem.kv_heads}, [&](int head) { return kv.Intersect(here[head]); }));
    }
  }

  std::vector<Round> Build() const {
    std::vector<Round> rounds;
    const auto add_if_any = [&rounds](Round round) {
      if (!round.transfers.empty() || !round.computes.empty()) rounds.push_back(std::move(round));
    };
    add_if_any(Redistribute());
    for (int turn = 0; turn < target_.mesh().token_groups; ++turn) add_if_any(Turn(turn));
    add_if_any(GoHome());
    return rounds;
  }

 private:
  // By KV head: the KV that goes round a head group. A ring passes whole shards; once heads are
  // apart, pages that none of the query rows sees under that head stay where they are.
  std::vector<BlockSet> Read(int head_group, const RowTable* rows) const {
    std::vector<std::vector<BlockRun>> q_runs(static_cast<size_t>(problem_.kv_heads));
    for (int group = 0; group < target_.mesh().token_groups; ++group) {
      for (const HeadBlocks& mine : cut_[target_.Rank(head_group, group)]) {
        const int end = (mine.heads.end() - 1) / problem_.group() + 1;
        for (int head = mine.heads.first / problem_.group(); head < end; ++head) {
          q_runs[head].insert(q_runs[head].end(), mine.blocks.runs().begin(),
                              mine.blocks.runs().end());
        }
      }
    }
    const bool passes_all = rows == nullptr || target_.mesh().head_groups == 1;
    const BlockSet all_rows = problem_.QueryBlocks();
    std::map<int, BlockSet> of_all;  // by class: what all rows read
    std::vector<BlockSet> read(q_runs.size());
    for (int head = 0; head < problem_.kv_heads; ++head) {
      if (q_runs[head].empty()) continue;
      if (passes_all) {
        read[head] = problem_.KvBlocks();
        continue;
      }
      const int c = rows->KvClass(head);
      BlockSet q_blocks = BlockSet::FromRuns(std::move(q_runs[head]));
      if (q_blocks.size() < all_rows.size()) {
        read[head] = BlocksRead(*rows, c, q_blocks);
        continue;
      }
      const auto [at, is_new] = of_all.try_emplace(c);
      if (is_new) at->second = BlocksRead(*rows, c, all_rows);
      read[head] = at->second;
    }
    return read;
  }

  Round Redistribute() const {
    Round round;
    for (int rank = 0; rank < problem_.world(); ++rank) {
      if (target_ != problem_.kv) FetchKv(problem_, rank, shards_[rank], &round.transfers);
      for (const HeadBlocks& mine : cut_[rank]) {
        MoveRows(problem_, Transfer::Kind::kQuery, rank, mine.heads, mine.blocks, &round.transfers);
      }
    }
    return round;
  }

  // Each rank computes on the shard it has and passes it on. A shard that has been passed on is
  // dropped, so that a rank has room for two besides its own.
  Round Turn(int turn) const {
    Round round;
    round.drop_received_kv = true;
    const int groups = target_.mesh().token_groups;
    for (int rank = 0; rank < problem_.world(); ++rank) {
      const int head_group = target_.HeadGroup(rank), group = target_.TokenGroup(rank);
      const int shard = (group + groups - turn) % groups;
      if (turn + 1 < groups) {
        Pass(rank, target_.Rank(head_group, (group + 1) % groups),
             shards_[target_.Rank(head_group, shard)], &round.transfers);
      }
      for (const HeadBlocks& mine : cut_[rank]) {
        if (kv_[shard].empty()) continue;
        round.computes.push_back({rank, mine.blocks, mine.heads, kv_[shard]});
      }
    }
    return round;
  }

  // Sends a shard, less what the next rank of the ring has had from the start.
  void Pass(int rank, int next, const std::vector<HeadBlocks>& shard,
            std::vector<Transfer>* transfers) const {
    const bool disjoint = target_ == problem_.kv;
    for (const HeadBlocks& piece : disjoint ? shard : NotHeld(problem_, next, shard)) {
      transfers->push_back({Transfer::Kind::kKv, rank, next, piece.heads, piece.blocks});
    }
  }

  Round GoHome() const {
    Round round;
    for (int rank = 0; rank < problem_.world(); ++rank) {
      for (const HeadBlocks& mine : cut_[rank]) {
        MoveRows(problem_, Transfer::Kind::kPartial, rank, mine.heads, mine.blocks,
                 &round.transfers);
      }
    }
    return round;
  }

  const Problem& problem_;
  const Layout target_;
  RingCut cut_;                                  // what each rank computes
  std::vector<BlockSet> kv_;                     // by token group: its KV blocks
  std::vector<std::vector<HeadBlocks>> shards_;  // by rank: the KV that goes round from there
};

}  // namespace

bool NeedsRows(PlanKind kind, const Problem& problem) {
  if (kind == PlanKind::kGroupCast || kind == PlanKind::kPassQ) return true;
  // Which of a mesh's rows go where depends on it where heads differ.
  return TargetMesh(kind, problem.world()).head_groups > 1 ||
         (kind == PlanKind::kMesh && HeadsDiffer(problem.pattern));
}

Plan BuildRing(PlanKind kind, const Problem& problem, const RowTable* rows) {
  return Plan(kind, problem, RingBuilder(kind, problem, rows).Build());
}

}  // namespace annulus
