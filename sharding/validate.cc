// Plan::Validate: plays a plan block by block and says what is wrong with it.
#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "sharding/plan.h"
#include "sharding/row_table.h"

namespace annulus {
namespace {

// A bit for each (rank, head segment or KV head, block).
class BlockBits {
 public:
  BlockBits(int64_t ranks, int64_t parts, int64_t blocks)
      : parts_(parts),
        blocks_(blocks),
        words_(static_cast<size_t>(ranks * parts * blocks / 64 + 1)) {}

  bool Get(int rank, int part, int64_t block) const {
    const size_t at = Index(rank, part, block);
    return (words_[at / 64] >> (at % 64)) & 1;
  }
  void Set(int rank, int part, int64_t block, bool value) {
    const size_t at = Index(rank, part, block);
    const uint64_t bit = uint64_t{1} << (at % 64);
    words_[at / 64] = value ? words_[at / 64] | bit : words_[at / 64] & ~bit;
  }
  void Clear() { words_.assign(words_.size(), 0); }
  void Add(const BlockBits& other) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  }

 private:
  size_t Index(int rank, int part, int64_t block) const {
    return static_cast<size_t>((rank * parts_ + part) * blocks_ + block);
  }

  int64_t parts_;
  int64_t blocks_;
  std::vector<uint64_t> words_;
};

// Query heads cut wherever a transfer, a compute or a class of KV heads begins or ends: all heads
// of one segment fare alike.
class HeadSegments {
 public:
  HeadSegments(const Plan& plan, const RowTable& rows) : cuts_{0, plan.problem().heads} {
    const auto cut = [this](HeadRange heads) {
      cuts_.push_back(heads.first);
      cuts_.push_back(heads.end());
    };
    for (const Round& round : plan.rounds()) {
      for (const Transfer& transfer : round.transfers) {
        if (transfer.kind != Transfer::Kind::kKv) cut(transfer.heads);
      }
      for (const Compute& compute : round.computes) cut(compute.heads);
    }
    for (int head = 1; head < plan.problem().heads; ++head) {
      if (rows.QueryClass(head) != rows.QueryClass(head - 1)) cuts_.push_back(head);
    }
    std::sort(cuts_.begin(), cuts_.end());
    cuts_.erase(std::unique(cuts_.begin(), cuts_.end()), cuts_.end());
  }

  int size() const { return static_cast<int>(cuts_.size()) - 1; }
  int FirstHead(int segment) const { return cuts_[segment]; }
  // The segments of a head range.
  HeadRange Of(HeadRange heads) const {
    const auto index = [this](int head) {
      return static_cast<int>(std::lower_bound(cuts_.begin(), cuts_.end(), head) - cuts_.begin());
    };
    return {index(heads.first), index(heads.end()) - index(heads.first)};
  }

 private:
  std::vector<int> cuts_;
};

absl::Status CheckShape(const Plan& plan) {
  const Problem& problem = plan.problem();
  const auto in = [](HeadRange heads, int limit) {
    return heads.first >= 0 && heads.count >= 1 && heads.end() <= limit;
  };
  const auto is_rank = [&](int rank) { return rank >= 0 && rank < problem.world(); };
  const auto is_end = [&](int rank, bool caller) {
    return is_rank(rank) || (caller && rank == kCaller && problem.home == Home::kCaller);
  };
  const BlockSet queries = problem.QueryBlocks(), keys = problem.KvBlocks();
  for (const Round& round : plan.rounds()) {
    for (const Transfer& t : round.transfers) {
      const bool kv = t.kind == Transfer::Kind::kKv;
      if (!is_end(t.source, t.kind == Transfer::Kind::kQuery) ||
          !is_end(t.destination, t.kind == Transfer::Kind::kPartial) || t.source == t.destination ||
          !in(t.heads, kv ? problem.kv_heads : problem.heads) || t.blocks.empty() ||
          !t.blocks.Subtract(kv ? keys : queries).empty()) {
        return absl::InternalError(absl::StrCat("plan: a transfer from ", t.source, " to ",
                                                t.destination, " of heads ", t.heads.first, "+",
                                                t.heads.count, " is out of range"));
      }
    }
    for (const Compute& c : round.computes) {
      if (!is_rank(c.rank) || !in(c.heads, problem.heads) ||
          !c.q_blocks.Subtract(queries).empty() || !c.kv_blocks.Subtract(keys).empty()) {
        return absl::InternalError(absl::StrCat("plan: a compute of rank ", c.rank, ", heads ",
                                                c.heads.first, "+", c.heads.count,
                                                " is out of range"));
      }
    }
  }
  return absl::OkStatus();
}

// Who holds what, round by round.
class Player {
 public:
  Player(const Plan& plan, const RowTable& rows, const HeadSegments& segments, const Stop& stop)
      : plan_(plan),
        problem_(plan.problem()),
        rows_(rows),
        segments_(segments),
        stop_(stop),
        received_(plan.world(), problem_.kv_heads, rows.kv_blocks()),
        arriving_(plan.world(), problem_.kv_heads, rows.kv_blocks()),
        queries_(plan.world(), segments.size(), rows.q_blocks_end()),
        partials_(plan.world(), segments.size(), rows.q_blocks_end()) {
    for (int64_t block = 0; block < rows.kv_blocks(); ++block) {
      owner_.push_back(problem_.kv.tokens().Owner(block));
    }
    holds_head_.resize(static_cast<size_t>(plan.world() * problem_.kv_heads));
    for (int rank = 0; rank < plan.world(); ++rank) {
      ForEachHead(problem_.kv.KvHeads(rank), [&](int head) {
        holds_head_[static_cast<size_t>(rank * problem_.kv_heads + head)] = true;
      });
    }
    if (problem_.home == Home::kOwners) {
      for (int rank = 0; rank < plan.world(); ++rank) {
        Mark(&queries_, rank, {0, segments.size()}, problem_.HomeRows(rank));
      }
    }
  }

  absl::Status Play() {
    for (const Round& round : plan_.rounds()) {
      ANNULUS_RETURN_IF_ERROR(Send(round));
      for (const Compute& compute : round.computes) {
        ANNULUS_RETURN_IF_ERROR(stop_.status());
        ANNULUS_RETURN_IF_ERROR(CheckCompute(compute));
      }
      ANNULUS_RETURN_IF_ERROR(Receive(round));
      ++round_;
    }
    return CheckAtHome();
  }

 private:
  static void Mark(BlockBits* bits, int rank, HeadRange parts, const BlockSet& blocks) {
    for (int part = parts.first; part < parts.end(); ++part) {
      ForEachBlock(blocks, [&](int64_t block) { bits->Set(rank, part, block, true); });
    }
  }

  absl::Status Wrong(int rank, absl::string_view what, int head, int64_t block) const {
    return absl::InternalError(absl::StrCat("plan ", Name(plan_.kind()), " round ", round_,
                                            ": rank ", rank, " ", what, ", head ", head, " block ",
                                            block));
  }

  bool HoldsKv(int rank, int kv_head, int64_t block) const {
    return (holds_head_[static_cast<size_t>(rank * problem_.kv_heads + kv_head)] &&
            owner_[block] == problem_.kv.TokenGroup(rank)) ||
           received_.Get(rank, kv_head, block);
  }

  // Takes from every source what it must hold; partials leave it.
  absl::Status Send(const Round& round) {
    for (const Transfer& t : round.transfers) {
      if (t.source == kCaller) continue;
      const bool kv = t.kind == Transfer::Kind::kKv;
      const HeadRange parts = kv ? t.heads : segments_.Of(t.heads);
      const std::vector<int64_t> blocks = t.blocks.ToVector();
      for (int part = parts.first; part < parts.end(); ++part) {
        for (int64_t block : blocks) {
          if (t.kind == Transfer::Kind::kPartial) {
            if (!partials_.Get(t.source, part, block)) {
              return Wrong(t.source, "sends a partial it lacks", part, block);
            }
            partials_.Set(t.source, part, block, false);
          } else if (!(kv ? HoldsKv(t.source, part, block) : queries_.Get(t.source, part, block))) {
            return Wrong(t.source, kv ? "sends KV it lacks" : "sends queries it lacks", part,
                         block);
          }
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckCompute(const Compute& compute) {
    const HeadRange parts = segments_.Of(compute.heads);
    const std::vector<int64_t> q_rows = compute.q_blocks.ToVector();
    for (int part = parts.first; part < parts.end(); ++part) {
      for (int64_t row : q_rows) {
        if (!queries_.Get(compute.rank, part, row)) {
          return Wrong(compute.rank, "lacks queries of", segments_.FirstHead(part), row);
        }
        partials_.Set(compute.rank, part, row, true);
      }
    }
    const int group = problem_.group();
    const std::vector<int64_t> kv_blocks = compute.kv_blocks.ToVector();
    for (int head = compute.heads.first / group; head * group < compute.heads.end(); ++head) {
      const std::vector<bool>& read = Read(rows_.KvClass(head), compute.q_blocks);
      for (int64_t block : kv_blocks) {
        if (read[block] && !HoldsKv(compute.rank, head, block)) {
          return Wrong(compute.rank, "lacks KV of", head, block);
        }
      }
    }
    return absl::OkStatus();
  }

  // By KV block: whether a row of q_blocks reads it. The same rows meet many shards.
  const std::vector<bool>& Read(int class_index, const BlockSet& q_blocks) {
    const auto [at, is_new] = read_.try_emplace({class_index, q_blocks.ToString()});
    if (is_new) {
      at->second.resize(static_cast<size_t>(rows_.kv_blocks()));
      ForEachBlock(BlocksRead(rows_, class_index, q_blocks),
                   [&](int64_t block) { at->second[block] = true; });
    }
    return at->second;
  }

  absl::Status Receive(const Round& round) {
    arriving_.Clear();
    for (const Transfer& t : round.transfers) {
      if (t.destination == kCaller) continue;
      const bool kv = t.kind == Transfer::Kind::kKv;
      const HeadRange parts = kv ? t.heads : segments_.Of(t.heads);
      if (t.kind == Transfer::Kind::kPartial) {
        Mark(&partials_, t.destination, parts, t.blocks);
        continue;
      }
      const std::vector<int64_t> blocks = t.blocks.ToVector();
      for (int part = parts.first; part < parts.end(); ++part) {
        for (int64_t block : blocks) {
          const bool has =
              kv ? HoldsKv(t.destination, part, block) || arriving_.Get(t.destination, part, block)
                 : queries_.Get(t.destination, part, block);
          if (has) return Wrong(t.destination, "is sent what it has", part, block);
          (kv ? arriving_ : queries_).Set(t.destination, part, block, true);
        }
      }
    }
    if (round.drop_received_kv) received_.Clear();
    received_.Add(arriving_);
    return absl::OkStatus();
  }

  absl::Status CheckAtHome() {
    for (int rank = 0; rank < plan_.world(); ++rank) {
      BlockSet away = problem_.QueryBlocks();
      if (problem_.home == Home::kOwners) away = away.Subtract(problem_.HomeRows(rank));
      for (int part = 0; part < segments_.size(); ++part) {
        for (int64_t row : away.ToVector()) {
          if (partials_.Get(rank, part, row)) {
            return Wrong(rank, "keeps a partial from its home", segments_.FirstHead(part), row);
          }
        }
      }
    }
    return absl::OkStatus();
  }

  const Plan& plan_;
  const Problem& problem_;
  const RowTable& rows_;
  const HeadSegments& segments_;
  const Stop& stop_;
  BlockBits received_;            // KV, by KV head
  BlockBits arriving_;            // KV of the current round
  BlockBits queries_;             // by segment
  BlockBits partials_;            // by segment
  std::vector<int> owner_;        // token group of each KV block before the plan
  std::vector<bool> holds_head_;  // by rank and KV head
  std::map<std::pair<int, std::string>, std::vector<bool>> read_;
  int round_ = 0;
};

// Whether every (row, head, block) that the pattern allows is computed exactly once. Rows that are
// in the same computes are checked together: all that they read must be in one of those.
class CoverageCheck {
 public:
  CoverageCheck(const Plan& plan, const RowTable& rows)
      : plan_(plan), rows_(rows), reads_(rows.kv_blocks()), computed_(rows.kv_blocks()) {}

  absl::Status Check(int head) {
    std::vector<const Compute*> computes;
    for (const Round& round : plan_.rounds()) {
      for (const Compute& compute : round.computes) {
        if (head >= compute.heads.first && head < compute.heads.end()) {
          computes.push_back(&compute);
        }
      }
    }
    const int64_t first = rows_.q_range().begin / kBlockTokens;
    std::map<int, std::vector<int64_t>> alike;
    const std::vector<int> kinds = Kinds(computes, first);
    for (size_t i = 0; i < kinds.size(); ++i) {
      alike[kinds[i]].push_back(first + static_cast<int64_t>(i));
    }
    for (const auto& [kind, q_blocks] : alike) {
      ANNULUS_RETURN_IF_ERROR(CheckAlike(head, computes, q_blocks));
    }
    return absl::OkStatus();
  }

 private:
  // By query block: equal numbers for those in exactly the same computes, by splitting all of them
  // at each compute in turn.
  std::vector<int> Kinds(const std::vector<const Compute*>& computes, int64_t first) const {
    std::vector<int> kinds(static_cast<size_t>(rows_.q_blocks_end() - first));
    int next = 1;
    std::vector<std::pair<const Compute*, int>> split(1);  // by kind: last split, and into what
    for (const Compute* compute : computes) {
      ForEachBlock(compute->q_blocks, [&](int64_t block) {
        int& kind = kinds[block - first];
        if (split[kind].first != compute) {
          split[kind] = {compute, next++};
          split.resize(static_cast<size_t>(next));
        }
        kind = split[kind].second;
      });
    }
    return kinds;
  }

  absl::Status CheckAlike(int head, const std::vector<const Compute*>& computes,
                          const std::vector<int64_t>& q_blocks) {
    for (int64_t row : q_blocks) reads_.AddRow(rows_, rows_.QueryClass(head), row);
    for (const Compute* compute : computes) {
      if (!compute->q_blocks.Contains(q_blocks[0])) continue;
      for (const BlockRun& run : compute->kv_blocks.runs()) computed_.Add(run, 1);
    }
    const std::vector<int64_t>& wanted = reads_.Finish();
    const std::vector<int64_t>& done = computed_.Finish();
    for (int64_t block = 0; block < rows_.kv_blocks(); ++block) {
      if (wanted[block] > 0 && done[block] != 1) {
        return absl::InternalError(absl::StrCat(
            "plan ", Name(plan_.kind()), ": head ", head, " of rows like those of query block ",
            q_blocks[0], " meets KV block ", block, " ", done[block], " times; expected once"));
      }
    }
    return absl::OkStatus();
  }

  const Plan& plan_;
  const RowTable& rows_;
  ReadCounts reads_, computed_;
};

}  // namespace

absl::Status Plan::Validate(const Stop& stop) const {
  ANNULUS_RETURN_IF_ERROR(CheckProblem(problem_));
  ANNULUS_RETURN_IF_ERROR(CheckShape(*this));
  ThreadPool pool(PlanningThreads(problem_));
  const RowTable rows(problem_, pool, stop);
  ANNULUS_RETURN_IF_ERROR(stop.status());
  const HeadSegments segments(*this, rows);
  ANNULUS_RETURN_IF_ERROR(Player(*this, rows, segments, stop).Play());
  CoverageCheck coverage(*this, rows);
  for (int segment = 0; segment < segments.size(); ++segment) {
    ANNULUS_RETURN_IF_ERROR(stop.status());
    ANNULUS_RETURN_IF_ERROR(coverage.Check(segments.FirstHead(segment)));
  }
  return absl::OkStatus();
}

}  // namespace annulus
