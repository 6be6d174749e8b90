// Pass-Q (arXiv 2411.01783 §3): KV stays where it is; the queries go to every rank that holds
// something they see, and partials come back. The plan for decode, where queries are few. Many
// partials of one home and the same heads are merged on the way by a tree among the ranks that made
// them: a rank takes in no more than log2 of them, and the caller no more than four of each head.
#include <algorithm>
#include <utility>

#include "sharding/build.h"

namespace annulus {
namespace {

using Pieces = std::vector<HeadBlocks>;

class PassQBuilder {
 public:
  PassQBuilder(const Problem& problem, const RowTable& rows, const Stop& stop)
      : problem_(problem), rows_(rows), stop_(stop), seen_(RowsThatSee()) {
    if (problem.home == Home::kOwners) {
      for (int rank = 0; rank < problem.world(); ++rank) homes_.push_back(problem.HomeRows(rank));
    }
  }

  std::vector<Round> Build() {
    Round ask, answer;
    for (int rank = 0; rank < problem_.world(); ++rank) {
      const Pieces here = Seeing(rank, HomeOf(rank));
      const Pieces all = Seeing(rank, problem_.QueryBlocks());
      AddComputes(rank, here, &ask.computes);
      for (const HeadBlocks& piece : all) {
        MoveRows(problem_, Transfer::Kind::kQuery, rank, piece.heads, piece.blocks, &ask.transfers);
      }
      AddComputes(rank, Seeing(rank, problem_.QueryBlocks().Subtract(HomeOf(rank))),
                  &answer.computes);
    }
    std::vector<Round> rounds;
    for (Round* round : {&ask, &answer}) {
      if (!round->transfers.empty() || !round->computes.empty())
        rounds.push_back(std::move(*round));
    }
    for (Round& round : ComeHome()) rounds.push_back(std::move(round));
    return rounds;
  }

 private:
  BlockSet HomeOf(int rank) const { return homes_.empty() ? BlockSet() : homes_[rank]; }

  // By token group and class: the query blocks that see a KV block of the group.
  std::vector<std::vector<BlockSet>> RowsThatSee() const {
    const Partition& tokens = problem_.kv.tokens();
    std::vector<std::vector<BlockSet>> seen(static_cast<size_t>(tokens.world()));
    std::vector<bool> owners(static_cast<size_t>(tokens.world()));
    for (int c = 0; c < rows_.classes(); ++c) {
      if (rows_.banded(c)) {
        for (size_t group = 0; group < seen.size(); ++group) {
          seen[group].push_back(RowsSeeing(c, tokens.BlocksOf(static_cast<int>(group))));
        }
        continue;
      }
      std::vector<BlockCollector> collectors(static_cast<size_t>(tokens.world()));
      for (int64_t q = rows_.q_range().begin / kBlockTokens;
           q < rows_.q_blocks_end() && !stop_.stopped(); ++q) {
        owners.assign(owners.size(), false);
        rows_.ForEachRun(c, q, [&](const BlockRun& run) { tokens.MarkOwners(run, &owners); });
        for (size_t group = 0; group < owners.size(); ++group) {
          if (owners[group]) collectors[group].Add(q);
        }
      }
      for (size_t group = 0; group < owners.size(); ++group) {
        seen[group].push_back(std::move(collectors[group]).Finish());
      }
    }
    return seen;
  }

  // The query blocks that see one of these KV blocks under a class that is banded.
  BlockSet RowsSeeing(int class_index, const BlockSet& kv) const {
    std::vector<BlockRun> seeing;
    for (const RowStretch& stretch : rows_.Stretches(class_index)) {
      for (const RowBand& band : stretch.bands) {
        for (const BlockRun& run : kv.runs()) {
          AppendSeeing(band, stretch.q_begin, stretch.q_end, run, &seeing);
        }
      }
    }
    return BlockSet::FromRuns(std::move(seeing));
  }

  // Which of `rows`, by head, see something that `rank` computes.
  Pieces Seeing(int rank, const BlockSet& rows) const {
    const std::vector<BlockSet>& seen = seen_[problem_.kv.TokenGroup(rank)];
    Pieces pieces;
    for (const HeadRange& heads : problem_.kv.QueryHeads(rank)) {
      for (HeadBlocks& piece : GroupHeads(
               heads, [&](int head) { return seen[rows_.QueryClass(head)].Intersect(rows); })) {
        pieces.push_back(std::move(piece));
      }
    }
    return pieces;
  }

  void AddComputes(int rank, const Pieces& pieces, std::vector<Compute>* computes) const {
    const BlockSet held = problem_.HeldBlocks(rank);
    for (const HeadBlocks& piece : pieces) {
      computes->push_back({rank, piece.blocks, piece.heads, held});
    }
  }

  // Partials of every home, all homes at the same time.
  std::vector<Round> ComeHome() const {
    std::vector<Round> rounds;
    if (problem_.home == Home::kCaller) {
      ComeHomeTo(kCaller, problem_.QueryBlocks(), &rounds);
    } else {
      for (int home = 0; home < problem_.world(); ++home) ComeHomeTo(home, homes_[home], &rounds);
    }
    return rounds;
  }

  struct Holder {
    int rank = 0;
    Pieces partials;
  };

  // Ranks of different heads have nothing to merge.
  void ComeHomeTo(int home, const BlockSet& rows, std::vector<Round>* rounds) const {
    if (rows.empty()) return;
    std::vector<std::vector<Holder>> holders(
        static_cast<size_t>(problem_.kv.mesh().head_groups));  // by head group
    // Starting after the home itself spreads the work of the inner nodes of different homes.
    for (int i = 1; i <= problem_.world(); ++i) {
      const int rank = (std::max(home, 0) + i) % problem_.world();
      if (rank == home) continue;
      Pieces partials = Seeing(rank, rows);
      if (partials.empty()) continue;
      holders[static_cast<size_t>(problem_.kv.HeadGroup(rank))].push_back(
          {rank, std::move(partials)});
    }
    for (std::vector<Holder>& group : holders) {
      if (group.size() <= kDirectPartialsMax) {
        for (const Holder& holder : group) Send(holder, home, 0, rounds);
      } else if (home == kCaller) {
        ComeToCaller(std::move(group), rounds);
      } else {
        group.insert(group.begin(), Holder{home, {}});
        size_t round = 0;
        for (size_t apart = 1; apart < group.size(); apart *= 2)
          Join(group, apart, 2, round++, rounds);
      }
    }
  }

  // In the fewest rounds after which no more than kDirectPartialsMax are left. A rank takes in up
  // to three others' in a round.
  void ComeToCaller(std::vector<Holder> holders, std::vector<Round>* rounds) const {
    size_t round = 0;
    size_t apart = 1;
    const auto left = [&] { return (holders.size() + apart - 1) / apart; };
    while (left() > kDirectPartialsMax) {
      const size_t together =
          std::min((left() + kDirectPartialsMax - 1) / kDirectPartialsMax, kDirectPartialsMax);
      Join(holders, apart, together, round++, rounds);
      apart *= together;
    }
    for (size_t i = 0; i < holders.size(); i += apart) Send(holders[i], kCaller, round, rounds);
  }

  // Of the holders that are left, each `apart` from the next, so many merge `together`.
  void Join(std::vector<Holder>& holders, size_t apart, size_t together, size_t round,
            std::vector<Round>* rounds) const {
    for (size_t i = 0; i < holders.size(); i += apart) {
      const size_t into = i - i % (apart * together);
      if (into == i) continue;
      Send(holders[i], holders[into].rank, round, rounds);
      Absorb(holders[i].partials, &holders[into].partials);
    }
  }

  void Send(const Holder& from, int to, size_t round, std::vector<Round>* rounds) const {
    if (rounds->size() <= round) rounds->resize(round + 1);
    for (const HeadBlocks& piece : from.partials) {
      (*rounds)[round].transfers.push_back(
          {Transfer::Kind::kPartial, from.rank, to, piece.heads, piece.blocks});
    }
  }

  // After a merge a rank has partials of the rows of both.
  void Absorb(const Pieces& from, Pieces* into) const {
    const auto rows_of = [](const Pieces& pieces, int head) {
      for (const HeadBlocks& piece : pieces) {
        if (head >= piece.heads.first && head < piece.heads.end()) return piece.blocks;
      }
      return BlockSet();
    };
    *into = GroupHeads({0, problem_.heads},
                       [&](int head) { return rows_of(*into, head).Union(rows_of(from, head)); });
  }

  const Problem& problem_;
  const RowTable& rows_;
  const Stop& stop_;
  const std::vector<std::vector<BlockSet>> seen_;
  std::vector<BlockSet> homes_;  // by rank; empty for kCaller
};

}  // namespace

Plan BuildPassQ(const Problem& problem, const RowTable& rows, const Stop& stop) {
  return Plan(PlanKind::kPassQ, problem, PassQBuilder(problem, rows, stop).Build());
}

}  // namespace annulus
