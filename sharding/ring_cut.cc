#include "sharding/ring_cut.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "sharding/assign.h"
#include "sharding/assign_heads.h"
#include "sharding/work.h"

namespace annulus {
namespace {

// Rows of a token group are cut only where there are some.
constexpr int64_t kRowsCutMin = 8;
// Heads whose work differs by less than this part of it are not told apart.
constexpr int64_t kAlikePart = 64;

// The rows of a head, which several head groups have parts of.
class SplitRows {
 public:
  SplitRows() = default;
  SplitRows(const RowTable& rows, int class_index, const BlockSet& q_blocks)
      : q_blocks_(q_blocks.ToVector()) {
    const auto total =
        static_cast<__int128>(std::max<int64_t>(1, WorkOf(rows, class_index, q_blocks)));
    int64_t before = 0;
    for (const int64_t q_block : q_blocks_) {
      const int64_t work = RowWork(rows, class_index, q_block);
      const auto middle = static_cast<__int128>(2) * before + work;
      const auto part = static_cast<int>(middle * kHeadParts / (2 * total));
      parts_.push_back(std::min(part, kHeadParts - 1));  // after the last row that sees a key
      before += work;
    }
  }

  BlockSet Of(const HeadShare& share) const {
    const auto index = [this](int part) {
      return std::lower_bound(parts_.begin(), parts_.end(), part) - parts_.begin();
    };
    return BlockSet::FromBlocks(
        {q_blocks_.begin() + index(share.part_begin), q_blocks_.begin() + index(share.part_end)});
  }

 private:
  std::vector<int64_t> q_blocks_;
  std::vector<int> parts_;  // that each is in, by work: ascending
};

class RingCutter {
 public:
  RingCutter(const Problem& problem, const Layout& target, PartitionSpec spec, const RowTable* rows)
      : problem_(problem), target_(target), rows_(rows) {
    const Partition cut = RowPartition(problem, spec, token_groups());
    for (int group = 0; group < token_groups(); ++group) {
      even_rows_.push_back(cut.BlocksOf(group));
    }
  }

  RingCut Cut(bool heads_lie) const {
    HeadShares shares = TargetShares();
    RingCut even = CutOf(shares, EvenRows(shares));
    if (rows_ == nullptr || rows_->classes() == 1) return even;
    const std::vector<int64_t> work = HeadWork();
    if (Alike(work)) return even;
    const double even_imbalance = Imbalance(even);
    if (even_imbalance <= kImbalanceMax) return even;
    if (!heads_lie) {
      shares = AssignHeads(work, problem_.group(), head_groups(), RowsMayBeCut());
    }
    RingCut by_heads = CutOf(shares, EvenRows(shares));
    const double heads_imbalance = Imbalance(by_heads);
    if (heads_imbalance <= kImbalanceMax) return by_heads;
    RingCut by_rows = CutOf(shares, RowsByWork(shares));
    const double rows_imbalance = Imbalance(by_rows);
    if (even_imbalance <= std::min(heads_imbalance, rows_imbalance)) return even;
    return heads_imbalance <= rows_imbalance ? by_heads : by_rows;
  }

 private:
  // The query blocks of the token groups: where heads are whole, by rank; and of the classes with
  // heads that are split, by token group, for all head groups alike.
  struct Rows {
    std::vector<BlockSet> of_rank;
    std::map<int, std::vector<SplitRows>> of_class;
  };

  int head_groups() const { return target_.mesh().head_groups; }
  int token_groups() const { return target_.mesh().token_groups; }

  bool RowsMayBeCut() const {
    return problem_.QueryBlocks().size() >= kRowsCutMin * token_groups();
  }

  HeadShares TargetShares() const {
    HeadShares shares;
    for (int group = 0; group < head_groups(); ++group) {
      shares.emplace_back();
      for (const HeadRange& heads : target_.QueryHeads(target_.Rank(group, 0))) {
        shares.back().push_back({heads});
      }
    }
    return shares;
  }

  Rows EvenRows(const HeadShares& shares) const {
    Rows rows;
    for (int rank = 0; rank < problem_.world(); ++rank) {
      rows.of_rank.push_back(even_rows_[target_.TokenGroup(rank)]);
    }
    for (const int c : SplitClasses(shares)) {
      for (const BlockSet& q_blocks : even_rows_) {
        rows.of_class[c].emplace_back(*rows_, c, q_blocks);
      }
    }
    return rows;
  }

  int ClassOf(const HeadShare& share) const { return rows_->QueryClass(share.heads.first); }

  std::set<int> SplitClasses(const HeadShares& shares) const {
    std::set<int> classes;
    for (const std::vector<HeadShare>& of_group : shares) {
      for (const HeadShare& share : of_group) {
        if (!share.whole()) classes.insert(ClassOf(share));
      }
    }
    return classes;
  }

  // By query head.
  std::vector<int64_t> HeadWork() const {
    std::vector<int64_t> of_class;
    for (int c = 0; c < rows_->classes(); ++c) {
      of_class.push_back(WorkOf(*rows_, c, problem_.QueryBlocks()));
    }
    std::vector<int64_t> work;
    for (int head = 0; head < problem_.heads; ++head) {
      work.push_back(of_class[rows_->QueryClass(head)]);
    }
    return work;
  }

  static bool Alike(const std::vector<int64_t>& work) {
    const auto [low, high] = std::minmax_element(work.begin(), work.end());
    return *high - *low <= *high / kAlikePart;
  }

  double Imbalance(const RingCut& cut) const {
    int64_t most = 0;
    double total = 0;
    for (const std::vector<HeadBlocks>& pieces : cut) {
      int64_t load = 0;
      for (const HeadBlocks& piece : pieces) {
        std::vector<int64_t> heads(static_cast<size_t>(rows_->classes()));
        for (int head = piece.heads.first; head < piece.heads.end(); ++head) {
          ++heads[rows_->QueryClass(head)];
        }
        for (int c = 0; c < rows_->classes(); ++c) {
          if (heads[c] > 0) load += heads[c] * WorkOf(*rows_, c, piece.blocks);
        }
      }
      most = std::max(most, load);
      total += static_cast<double>(load);
    }
    return total == 0 ? 1 : static_cast<double>(most) * problem_.world() / total;
  }

  RingCut CutOf(const HeadShares& shares, const Rows& rows) const {
    RingCut cut(static_cast<size_t>(problem_.world()));
    for (int rank = 0; rank < problem_.world(); ++rank) {
      for (const HeadShare& share : shares[target_.HeadGroup(rank)]) {
        BlockSet mine = share.whole()
                            ? rows.of_rank[rank]
                            : rows.of_class.at(ClassOf(share))[target_.TokenGroup(rank)].Of(share);
        if (!mine.empty()) cut[rank].push_back({share.heads, std::move(mine)});
      }
    }
    return cut;
  }

  // In two chunks for each token group as in a zigzag, so large that each has the same work: those
  // of a class for its heads, those of whole heads together with the parts of others.
  Rows RowsByWork(const HeadShares& shares) const {
    Rows rows;
    std::vector<std::vector<int64_t>> of_class(static_cast<size_t>(rows_->classes()));
    const std::vector<int64_t> q_blocks = problem_.QueryBlocks().ToVector();
    const std::vector<int64_t> none(static_cast<size_t>(token_groups()));
    for (int c = 0; c < rows_->classes(); ++c) {
      for (const int64_t q_block : q_blocks) of_class[c].push_back(RowWork(*rows_, c, q_block));
    }
    for (const int c : SplitClasses(shares)) {
      for (const BlockSet& cut : Zigzag(q_blocks, of_class[c], none)) {
        rows.of_class[c].emplace_back(*rows_, c, cut);
      }
    }
    rows.of_rank.resize(static_cast<size_t>(problem_.world()));
    for (int group = 0; group < head_groups(); ++group) {
      std::vector<int64_t> work(q_blocks.size());  // of whole heads
      std::vector<int64_t> parts = none;
      for (const HeadShare& share : shares[group]) {
        for (int t = 0; !share.whole() && t < token_groups(); ++t) {
          const int c = ClassOf(share);
          parts[t] += WorkOf(*rows_, c, rows.of_class.at(c)[t].Of(share));
        }
        for (int head = share.heads.first; share.whole() && head < share.heads.end(); ++head) {
          const std::vector<int64_t>& row_work = of_class[rows_->QueryClass(head)];
          for (size_t i = 0; i < work.size(); ++i) work[i] += row_work[i];
        }
      }
      std::vector<BlockSet> cut = Zigzag(q_blocks, work, parts);
      for (int t = 0; t < token_groups(); ++t) {
        rows.of_rank[target_.Rank(group, t)] = std::move(cut[t]);
      }
    }
    return rows;
  }

  // By token group. `work`: of each query block; `others`: of each token group beside it.
  static std::vector<BlockSet> Zigzag(const std::vector<int64_t>& q_blocks,
                                      const std::vector<int64_t>& work,
                                      const std::vector<int64_t>& others) {
    const int groups = static_cast<int>(others.size());
    const int64_t each = (std::accumulate(work.begin(), work.end(), int64_t{0}) +
                          std::accumulate(others.begin(), others.end(), int64_t{0})) /
                         groups;
    const auto chunk_work = [&](int chunk) {
      return std::max<int64_t>(0, each - others[std::min(chunk, 2 * groups - 1 - chunk)]) / 2;
    };
    std::vector<BlockCollector> taken(others.size());
    int chunk = 0;
    int64_t before = 0, end = chunk_work(0);
    for (size_t i = 0; i < work.size(); ++i) {
      while (chunk + 1 < 2 * groups && before + work[i] / 2 >= end) end += chunk_work(++chunk);
      taken[std::min(chunk, 2 * groups - 1 - chunk)].Add(q_blocks[i]);
      before += work[i];
    }
    std::vector<BlockSet> rows;
    for (BlockCollector& blocks : taken) rows.push_back(std::move(blocks).Finish());
    return rows;
  }

  const Problem& problem_;
  const Layout& target_;
  const RowTable* rows_;
  std::vector<BlockSet> even_rows_;  // by token group
};

}  // namespace

RingCut CutRing(const Problem& problem, const Layout& target, bool heads_lie, PartitionSpec spec,
                const RowTable* rows) {
  return RingCutter(problem, target, spec, rows).Cut(heads_lie);
}

}  // namespace annulus
