// Group-cast (as MagiAttention's, github.com/SandAI-org/MagiAttention): the query rows stay with
// the rank that owns them and each KV page goes to exactly the ranks whose rows read it. While the
// pages travel, each rank computes on what it holds.
#include <utility>

#include "sharding/build.h"

namespace annulus {
namespace {

// Rows of a rank against KV that it held before the plan, KV that it was sent, or both.
class RankComputes {
 public:
  RankComputes(const Problem& problem, int rank)
      : problem_(problem),
        rank_(rank),
        held_(problem.HeldBlocks(rank)),
        not_held_(problem.KvBlocks().Subtract(held_)) {
    const HeadRange kv_heads = problem.kv.KvHeads(rank);
    const int group = problem.group();
    heads_held_ = {kv_heads.first * group, kv_heads.count * group};
  }

  void Held(const BlockSet& rows, std::vector<Compute>* out) const {
    Add(rows, heads_held_, held_, out);
  }

  void Sent(const BlockSet& rows, std::vector<Compute>* out) const {
    Add(rows, {0, heads_held_.first}, problem_.KvBlocks(), out);
    Add(rows, heads_held_, not_held_, out);
    Add(rows, {heads_held_.end(), problem_.heads - heads_held_.end()}, problem_.KvBlocks(), out);
  }

  void Both(const BlockSet& rows, std::vector<Compute>* out) const {
    Add(rows, {0, problem_.heads}, problem_.KvBlocks(), out);
  }

 private:
  void Add(const BlockSet& rows, HeadRange heads, const BlockSet& kv,
           std::vector<Compute>* out) const {
    if (!rows.empty() && heads.count > 0 && !kv.empty()) out->push_back({rank_, rows, heads, kv});
  }

  const Problem& problem_;
  const int rank_;
  const BlockSet held_;
  const BlockSet not_held_;
  HeadRange heads_held_;  // query heads
};

}  // namespace

Plan BuildGroupCast(const Problem& problem, const RowTable& rows) {
  const HeadRange all{0, problem.heads};
  const Partition row_cut = RowPartition(problem, problem.home_partition, problem.world());
  ReadCounts scratch(rows.kv_blocks());
  Step cast, rest, home;
  for (int rank = 0; rank < problem.world(); ++rank) {
    const BlockSet mine = row_cut.BlocksOf(rank);
    if (mine.empty()) continue;
    std::vector<BlockSet> read;  // by class
    for (int c = 0; c < rows.classes(); ++c) read.push_back(BlocksRead(rows, c, mine, &scratch));
    const std::vector<HeadBlocks> wanted =
        GroupHeads({0, problem.kv_heads}, [&](int head) { return read[rows.KvClass(head)]; });
    const size_t before = cast.transfers.size();
    FetchKv(problem, rank, wanted, &cast.transfers);
    const bool sent_any = cast.transfers.size() > before;
    MoveRows(problem, Transfer::Kind::kQuery, rank, all, mine, &cast.transfers);
    MoveRows(problem, Transfer::Kind::kPartial, rank, all, mine, &home.transfers);

    // Rows that are here already need not wait for those that come.
    const BlockSet here =
        problem.home == Home::kOwners ? mine.Intersect(problem.HomeRows(rank)) : BlockSet();
    const RankComputes computes(problem, rank);
    computes.Held(here, &cast.computes);
    if (sent_any) computes.Sent(here, &rest.computes);
    computes.Both(mine.Subtract(here), &rest.computes);
  }
  rest.drop_received_kv = true;
  std::vector<Step> steps;
  for (Step* step : {&cast, &rest, &home}) {
    if (!step->transfers.empty() || !step->computes.empty()) steps.push_back(std::move(*step));
  }
  return Plan(PlanKind::kGroupCast, problem, std::move(steps));
}

}  // namespace annulus
