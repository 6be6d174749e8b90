#include "sharding/assign.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "base/check.h"
#include "sharding/build.h"
#include "sharding/work.h"

namespace annulus {
namespace {

// What a rank reads is compared in this many cells of the context at most, by the blocks read in
// each: exact while a cell is a block.
constexpr int64_t kCellsMax = 1024;
// The ranks nearest to the giver that are asked for room: they are nearest in the context as well.
constexpr int kReceiversMax = 64;
// Between two rows whose work differs by more than this factor a document ends.
constexpr int64_t kSlopeMax = 2;
constexpr int kStays = -1;  // of a row: at home

// Blocks read, by cell of the context; and by coarse cells of many, which are quick to make and to
// compare and mostly tell enough.
class Cells {
 public:
  Cells() = default;
  Cells(BlockSet blocks, int64_t kv_blocks, int64_t cell_blocks)
      : blocks_(std::move(blocks)), kv_blocks_(kv_blocks), cell_blocks_(cell_blocks) {
    ANNULUS_CHECK(kv_blocks <= cell_blocks * kTogether * std::ssize(coarse_));
    Count(cell_blocks * kTogether, &coarse_);
  }

  // How many blocks of these `other` does not read: at least LackedAtLeast.
  int64_t LackedBy(Cells& other) { return Lacked(Fine(), other.Fine()); }
  int64_t LackedAtLeast(const Cells& other) const { return Lacked(coarse_, other.coarse_); }

  // Reads what `other` reads, too.
  void Raise(Cells& other) {
    std::vector<int32_t>& fine = Fine();
    coarse_ = {};
    for (size_t i = 0; i < fine.size(); ++i) {
      fine[i] = std::max(fine[i], other.Fine()[i]);
      coarse_[i / kTogether] += fine[i];
    }
  }

 private:
  static constexpr int64_t kTogether = 32;  // cells in a coarse one

  std::vector<int32_t>& Fine() {
    if (fine_.empty()) {
      fine_.resize(static_cast<size_t>((kv_blocks_ + cell_blocks_ - 1) / cell_blocks_));
      Count(cell_blocks_, &fine_);
    }
    return fine_;
  }

  // Into cells that are 0.
  template <typename Counts>
  void Count(int64_t cell_blocks, Counts* cells) const {
    for (const BlockRun& run : blocks_.runs()) {
      int64_t cell = run.first / cell_blocks;
      for (int64_t at = run.first; run.step == 1 && at <= run.last(); ++cell) {
        const int64_t next = std::min((cell + 1) * cell_blocks, run.last() + 1);
        (*cells)[static_cast<size_t>(cell)] += static_cast<int32_t>(next - at);
        at = next;
      }
      if (run.step == 1) continue;
      for (int64_t i = 0; i < run.count;) {
        cell = (run.first + i * run.step) / cell_blocks;
        const int64_t left = (cell + 1) * cell_blocks - (run.first + i * run.step);
        const int64_t here = std::min(run.count - i, (left + run.step - 1) / run.step);
        (*cells)[static_cast<size_t>(cell)] += static_cast<int32_t>(here);
        i += here;
      }
    }
  }

  // In 32 bits, as blocks are numbered, so that several cells are compared at once.
  template <typename Counts>
  static int64_t Lacked(const Counts& mine, const Counts& theirs) {
    int32_t lacked = 0;
    for (size_t i = 0; i < mine.size(); ++i) lacked += std::max(mine[i] - theirs[i], 0);
    return lacked;
  }

  BlockSet blocks_;
  int64_t kv_blocks_ = 0;
  int64_t cell_blocks_ = 1;
  std::array<int32_t, kCellsMax / kTogether> coarse_ = {};
  std::vector<int32_t> fine_;  // made when it is asked for
};

// Rows of one KV head that a rank could give, those with most work first.
struct Stretch {
  int kv_head = 0;
  std::vector<int64_t> q_blocks;
  // Of the first rows, by how many: their work, and their queries under one query head.
  std::vector<int64_t> work = {0};
  std::vector<int64_t> queries = {0};
};

// The first `rows` of a stretch: what they are worth and what they cost.
struct Offer {
  size_t rows = 0;
  int64_t work = 0;
  int64_t row_bytes = 0;  // queries and answers that travel
  Cells reads;
};

struct Move {
  int kv_head = 0;
  std::vector<int64_t> q_blocks;
  int64_t work = 0;
  Cells reads;
  int receiver = 0;
  double bytes_per_work = 0;
};

class Assigner {
 public:
  Assigner(const Problem& problem, const RowTable& rows, const Stop& stop)
      : problem_(problem),
        rows_(rows),
        stop_(stop),
        first_(problem.q_range().begin / kBlockTokens),
        cell_blocks_((rows.kv_blocks() + kCellsMax - 1) / kCellsMax),
        reads_(static_cast<size_t>(problem.world())),
        loads_(static_cast<size_t>(problem.world())) {
    const bool owners = problem.home == Home::kOwners;
    const Partition cut = RowPartition(problem, problem.home_partition, problem.world());
    for (int rank = 0; rank < problem.world(); ++rank) {
      home_.push_back(owners ? problem.HomeRows(rank) : cut.BlocksOf(rank));
      home_blocks_.push_back(home_.back().ToVector());
    }
    WeighRows();
  }

  Assignment Assign() && {
    int64_t total = 0;
    for (int64_t load : loads_) total += load;
    limit_ = static_cast<int64_t>(kImbalanceMax * static_cast<double>(total) / problem_.world());
    while (!stop_.stopped()) {
      const auto most = std::max_element(loads_.begin(), loads_.end());
      if (*most <= limit_) break;
      const int giver = static_cast<int>(most - loads_.begin());
      std::optional<Move> move = BestMove(giver, limit_);
      // Blocks too big for the limit still go where they leave the most loaded rank with less.
      if (!move) move = BestMove(giver, *most - 1);
      if (!move) break;
      Apply(giver, *std::move(move));
    }
    return Result();
  }

 private:
  int64_t WorkOf(int kv_head, int64_t q_block) const {
    if (!problem_.pattern.by_query_head()) {
      return work_[rows_.KvClass(kv_head)][q_block - first_] * problem_.group();
    }
    int64_t work = 0;
    for (int head = kv_head * problem_.group(); head < (kv_head + 1) * problem_.group(); ++head) {
      work += work_[rows_.QueryClass(head)][q_block - first_];
    }
    return work;
  }

  // Work of each query block, of a query head of each class; and of each rank at the start.
  void WeighRows() {
    work_.resize(static_cast<size_t>(rows_.classes()));
    for (int c = 0; c < rows_.classes(); ++c) {
      for (int64_t q = first_; q < rows_.q_blocks_end(); ++q) {
        work_[c].push_back(RowWork(rows_, c, q));
      }
    }
    std::vector<int64_t> heads(work_.size());
    for (int head = 0; head < problem_.heads; ++head) ++heads[rows_.QueryClass(head)];
    for (int rank = 0; rank < problem_.world(); ++rank) {
      for (int64_t q : home_blocks_[rank]) {
        for (size_t c = 0; c < work_.size(); ++c) loads_[rank] += heads[c] * work_[c][q - first_];
      }
    }
  }

  // The cheapest move for its work from `giver` to a rank that ends with at most `cap`.
  std::optional<Move> BestMove(int giver, int64_t cap) {
    const std::vector<int> receivers = Receivers(giver, cap);
    const int64_t need = loads_[giver] - limit_;
    int64_t room = 0;  // of the receiver that has most
    for (int receiver : receivers) room = std::max(room, cap - loads_[receiver]);
    std::vector<bool> seen(work_.size());  // by class: a head of which nothing has moved
    std::optional<Move> best;
    for (int head = 0; receivers.size() > 0 && head < problem_.kv_heads; ++head) {
      if (problem_.kv.mesh().head_groups == 1 && moved_.count(head) == 0) {
        // Heads of one class of which nothing has moved are alike everywhere: the first will do.
        if (seen[rows_.KvClass(head)]) continue;
        seen[rows_.KvClass(head)] = true;
      }
      for (const Stretch& stretch : StretchesOf(giver, head)) {
        for (size_t rows = RowsFor(stretch, need); rows > 0 && !stop_.stopped(); rows /= 2) {
          Offer offer = OfferOf(stretch, rows);
          const double rows_alone =
              static_cast<double>(offer.row_bytes) / static_cast<double>(offer.work);
          if (offer.work > room || (best && rows_alone >= best->bytes_per_work)) continue;
          offer.reads = ReadsOf(stretch, rows);
          Consider(stretch, offer, receivers, cap, &best);
        }
      }
    }
    return best;
  }

  std::vector<int> Receivers(int giver, int64_t cap) const {
    std::vector<int> receivers;
    const auto add = [&](int rank) {
      if (rank >= 0 && rank < problem_.world() && loads_[rank] < cap) receivers.push_back(rank);
    };
    for (int away = 1; away < problem_.world() && receivers.size() < kReceiversMax; ++away) {
      add(giver - away);
      add(giver + away);
    }
    return receivers;
  }

  // The rows of a head that `giver` still has from home, cut where a document ends. They stay as
  // they are until rows of the head move from there.
  const std::vector<Stretch>& StretchesOf(int giver, int kv_head) {
    const auto [at, is_new] = stretches_.try_emplace({giver, kv_head});
    std::vector<Stretch>& stretches = at->second;
    if (!is_new) return stretches;
    int64_t before = 0;
    for (int64_t q_block : home_blocks_[giver]) {
      const int64_t work = WorkOf(kv_head, q_block);
      if (work == 0 || IsMoved(kv_head, q_block)) continue;
      if (before == 0 || std::max(work, before) > kSlopeMax * std::min(work, before)) {
        stretches.push_back({kv_head, {}});
      }
      stretches.back().q_blocks.push_back(q_block);
      before = work;
    }
    for (Stretch& stretch : stretches) {
      std::vector<int64_t>& blocks = stretch.q_blocks;
      if (WorkOf(kv_head, blocks.front()) <= WorkOf(kv_head, blocks.back())) {
        std::reverse(blocks.begin(), blocks.end());
      }
      for (const int64_t q_block : blocks) {
        stretch.work.push_back(stretch.work.back() + WorkOf(kv_head, q_block));
        stretch.queries.push_back(stretch.queries.back() + rows_.Queries(q_block));
      }
    }
    return stretches;
  }

  // As many rows of a stretch as give `need` work, or all.
  static size_t RowsFor(const Stretch& stretch, int64_t need) {
    const auto enough = std::lower_bound(stretch.work.begin(), stretch.work.end(), need);
    return std::min(static_cast<size_t>(enough - stretch.work.begin()), stretch.q_blocks.size());
  }

  // Without what it reads.
  Offer OfferOf(const Stretch& stretch, size_t rows) const {
    return {rows, stretch.work[rows], stretch.queries[rows] * RowBytes(), {}};
  }

  Cells ReadsOf(const Stretch& stretch, size_t rows) const {
    std::vector<int64_t> q_blocks(stretch.q_blocks.begin(), stretch.q_blocks.begin() + rows);
    // A stretch ascends or descends.
    if (q_blocks.front() > q_blocks.back()) std::reverse(q_blocks.begin(), q_blocks.end());
    return CellsOf(
        BlocksRead(rows_, rows_.KvClass(stretch.kv_head), BlockSet::FromBlocks(q_blocks)));
  }

  // Of one token's queries and answers under a KV head. A caller sends and takes them anyway.
  int64_t RowBytes() const {
    if (problem_.home == Home::kCaller) return 0;
    const int64_t query = problem_.head_dim * static_cast<int64_t>(SizeOf(problem_.dtype));
    const int64_t answer = (problem_.v_head_dim + 1) * static_cast<int64_t>(sizeof(float));
    return problem_.group() * (query + answer);
  }

  Cells CellsOf(BlockSet blocks) const {
    return Cells(std::move(blocks), rows_.kv_blocks(), cell_blocks_);
  }

  void Consider(const Stretch& stretch, Offer& offer, const std::vector<int>& receivers,
                int64_t cap, std::optional<Move>* best) {
    const int64_t page_bytes =
        kBlockTokens * static_cast<int64_t>(SizeOf(problem_.dtype)) *
        (problem_.head_dim + (problem_.v_is_k_prefix ? 0 : problem_.v_head_dim));
    for (int receiver : receivers) {
      if (loads_[receiver] + offer.work > cap) continue;
      Cells& has = ReadsOf(receiver, stretch.kv_head);
      const auto cost = [&](int64_t pages) {
        return static_cast<double>(offer.row_bytes + pages * page_bytes) /
               static_cast<double>(offer.work);
      };
      if (*best && (*best)->bytes_per_work <= cost(offer.reads.LackedAtLeast(has))) continue;
      const double bytes_per_work = cost(offer.reads.LackedBy(has));
      if (*best && (*best)->bytes_per_work <= bytes_per_work) continue;
      *best = Move{stretch.kv_head, {}, offer.work, offer.reads, receiver, bytes_per_work};
      (*best)->q_blocks.assign(stretch.q_blocks.begin(), stretch.q_blocks.begin() + offer.rows);
    }
  }

  // What `rank` holds or reads of a KV head.
  Cells& ReadsOf(int rank, int kv_head) {
    const auto [at, is_new] = reads_[rank].try_emplace(kv_head);
    if (is_new) {
      BlockSet blocks = BlocksRead(rows_, rows_.KvClass(kv_head), home_[rank]);
      if (Contains(problem_.kv.KvHeads(rank), kv_head)) {
        blocks = blocks.Union(problem_.HeldBlocks(rank));
      }
      at->second = CellsOf(std::move(blocks));
    }
    return at->second;
  }

  void Apply(int giver, Move move) {
    loads_[giver] -= move.work;
    loads_[move.receiver] += move.work;
    stretches_.erase({giver, move.kv_head});
    ReadsOf(move.receiver, move.kv_head).Raise(move.reads);
    std::vector<int>& moved = moved_[move.kv_head];
    moved.resize(static_cast<size_t>(rows_.q_blocks_end() - first_), kStays);
    for (int64_t q_block : move.q_blocks) moved[q_block - first_] = move.receiver;
  }

  bool IsMoved(int kv_head, int64_t q_block) const {
    const auto at = moved_.find(kv_head);
    return at != moved_.end() && at->second[q_block - first_] != kStays;
  }

  Assignment Result() const {
    Assignment rows(home_.size());
    for (size_t rank = 0; rank < home_.size(); ++rank) {
      rows[rank].assign(static_cast<size_t>(problem_.kv_heads), home_[rank]);
    }
    for (const auto& [head, receivers] : moved_) {
      std::vector<BlockCollector> come(home_.size());
      BlockCollector left;
      for (size_t i = 0; i < receivers.size(); ++i) {
        if (receivers[i] == kStays) continue;
        const int64_t q_block = first_ + static_cast<int64_t>(i);
        come[receivers[i]].Add(q_block);
        left.Add(q_block);
      }
      const BlockSet gone = std::move(left).Finish();
      for (size_t rank = 0; rank < home_.size(); ++rank) {
        rows[rank][head] = home_[rank].Subtract(gone).Union(std::move(come[rank]).Finish());
      }
    }
    return rows;
  }

  const Problem& problem_;
  const RowTable& rows_;
  const Stop& stop_;
  const int64_t first_;  // query block
  const int64_t cell_blocks_;
  std::vector<BlockSet> home_;                     // by rank: the rows it starts with
  std::vector<std::vector<int64_t>> home_blocks_;  // the same, ascending
  std::vector<std::vector<int64_t>> work_;         // by class, by query block
  std::vector<std::map<int, Cells>> reads_;        // by rank, by KV head
  std::map<std::pair<int, int>, std::vector<Stretch>> stretches_;  // by giver and KV head
  std::vector<int64_t> loads_;                                     // by rank
  int64_t limit_ = 0;
  std::map<int, std::vector<int>> moved_;  // by KV head, by query block: to whom, or kStays
};

}  // namespace

Assignment AssignRows(const Problem& problem, const RowTable& rows, const Stop& stop) {
  return Assigner(problem, rows, stop).Assign();
}

}  // namespace annulus
