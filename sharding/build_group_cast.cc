// Group-cast (as MagiAttention's, github.com/SandAI-org/MagiAttention): query rows stay with the
// rank that owns them, but for those that must move to balance work (sharding/assign.h), and each
// KV page goes to exactly the ranks whose rows read it.
// Its stages hide what travels: the KV heads are cut into so many parts, and while the pages of one
// part travel, each rank computes on what it holds of that part and on all of the part before, and
// the answers of the part before that go home. With no stages at all, nothing is hidden: all pages
// travel, then every row meets all that it reads in one launch, the fewest that there can be.
#include <algorithm>
#include <optional>
#include <utility>

#include "sharding/assign.h"
#include "sharding/build.h"

namespace annulus {
namespace {

// Launches of one rank: rows under some KV heads against KV that it held before the plan, KV that
// it was sent, or both.
class RankComputes {
 public:
  RankComputes(const Problem& problem, int rank)
      : problem_(problem),
        rank_(rank),
        held_heads_(problem.kv.KvHeads(rank)),
        held_(problem.HeldBlocks(rank)),
        not_held_(problem.KvBlocks().Subtract(held_)) {}

  void Held(const HeadBlocks& rows, std::vector<Compute>* out) const {
    for (const HeadRange& heads : held_heads_) {
      Add(rows.blocks, Intersect(rows.heads, heads), held_, out);
    }
  }

  void Sent(const HeadBlocks& rows, std::vector<Compute>* out) const {
    int at = 0;
    for (const HeadRange& heads : held_heads_) {
      Add(rows.blocks, Intersect(rows.heads, {at, heads.first - at}), problem_.KvBlocks(), out);
      Add(rows.blocks, Intersect(rows.heads, heads), not_held_, out);
      at = heads.end();
    }
    Add(rows.blocks, Intersect(rows.heads, {at, problem_.kv_heads - at}), problem_.KvBlocks(), out);
  }

  void Both(const HeadBlocks& rows, std::vector<Compute>* out) const {
    Add(rows.blocks, rows.heads, problem_.KvBlocks(), out);
  }

 private:
  void Add(const BlockSet& rows, HeadRange kv_heads, const BlockSet& kv,
           std::vector<Compute>* out) const {
    if (rows.empty() || kv_heads.count == 0 || kv.empty()) return;
    const int group = problem_.group();
    out->push_back({rank_, rows, {kv_heads.first * group, kv_heads.count * group}, kv});
  }

  const Problem& problem_;
  const int rank_;
  const HeadRanges& held_heads_;
  const BlockSet held_;
  const BlockSet not_held_;
};

}  // namespace

GroupCast::GroupCast(const Problem& problem, const RowTable& rows, ThreadPool& pool,
                     const Stop& stop)
    : problem_(problem), ranks_(static_cast<size_t>(problem.world())) {
  const Assignment assignment = AssignRows(problem, rows, stop);
  pool.ParallelFor(problem.world(), [&](int64_t index) {
    if (stop.stopped()) return;
    Rank& rank = ranks_[index];
    rank.rows =
        GroupHeads({0, problem.kv_heads}, [&](int head) { return assignment[index][head]; });
    std::vector<HeadBlocks> wanted;
    for (const HeadBlocks& mine : rank.rows) {
      std::vector<std::optional<BlockSet>> read(static_cast<size_t>(rows.classes()));
      for (HeadBlocks& want : GroupHeads(mine.heads, [&](int head) {
             std::optional<BlockSet>& blocks = read[rows.KvClass(head)];
             if (!blocks) blocks = BlocksRead(rows, rows.KvClass(head), mine.blocks);
             return *blocks;
           })) {
        wanted.push_back(std::move(want));
      }
    }
    FetchKv(problem, static_cast<int>(index), wanted, &rank.kv);
  });
}

// The KV heads in `count` parts, or as many as there are, so that about as much travels for each.
std::vector<HeadRange> GroupCast::Parts(int count) const {
  std::vector<double> sent(static_cast<size_t>(problem_.kv_heads), 1.0);  // tokens, by head
  for (const Rank& rank : ranks_) {
    for (const Transfer& t : rank.kv) {
      const auto tokens = static_cast<double>(t.blocks.TokenCount(problem_.keys().end));
      for (int head = t.heads.first; head < t.heads.end(); ++head) sent[head] += tokens;
    }
  }
  double left = 0;
  for (double tokens : sent) left += tokens;
  std::vector<HeadRange> parts;
  int head = 0;
  for (int part = 0; part < count && head < problem_.kv_heads; ++part) {
    HeadRange& heads = parts.emplace_back(HeadRange{head, 0});
    // Heads are left for the parts to come, and the last part takes what is left.
    const int end = std::max(head + 1, problem_.kv_heads - (count - 1 - part));
    const double share = left / (count - part);
    double taken = 0;
    while (head < end && (heads.count == 0 || taken + sent[head] / 2 <= share)) {
      taken += sent[head++];
      ++heads.count;
    }
    left -= taken;
  }
  parts.back().count = problem_.kv_heads - parts.back().first;
  return parts;
}

void GroupCast::AddPart(int index, HeadRange heads, bool hides, Round* cast, Round* rest,
                        Round* home) const {
  const Rank& rank = ranks_[index];
  bool is_sent = false;
  for (const Transfer& t : rank.kv) {
    const HeadRange part = Intersect(t.heads, heads);
    if (part.count == 0) continue;
    cast->transfers.push_back({t.kind, t.source, t.destination, part, t.blocks});
    is_sent = true;
  }
  const BlockSet home_rows = problem_.home == Home::kOwners ? problem_.HomeRows(index) : BlockSet();
  const RankComputes computes(problem_, index);
  for (const HeadBlocks& mine : rank.rows) {
    const HeadRange part = Intersect(mine.heads, heads);
    if (part.count == 0) continue;
    const HeadRange query_heads{part.first * problem_.group(), part.count * problem_.group()};
    MoveRows(problem_, Transfer::Kind::kQuery, index, query_heads, mine.blocks, &cast->transfers);
    MoveRows(problem_, Transfer::Kind::kPartial, index, query_heads, mine.blocks, &home->transfers);
    // Rows that are here already need not wait for those that come.
    const HeadBlocks here{part, hides ? mine.blocks.Intersect(home_rows) : BlockSet()};
    computes.Held(here, &cast->computes);
    if (is_sent) computes.Sent(here, &rest->computes);
    computes.Both({part, mine.blocks.Subtract(here.blocks)}, &rest->computes);
  }
}

Plan GroupCast::Build(int stages) const {
  const std::vector<HeadRange> parts = Parts(std::max(stages, 1));
  std::vector<Round> all(parts.size() + 2);
  for (size_t part = 0; part < parts.size(); ++part) {
    for (int rank = 0; rank < problem_.world(); ++rank) {
      AddPart(rank, parts[part], stages > 0, &all[part], &all[part + 1], &all[part + 2]);
    }
    all[part + 1].drop_received_kv = true;
  }
  std::vector<Round> rounds;
  for (Round& round : all) {
    if (!round.transfers.empty() || !round.computes.empty()) rounds.push_back(std::move(round));
  }
  return Plan(PlanKind::kGroupCast, problem_, std::move(rounds), stages);
}

}  // namespace annulus
