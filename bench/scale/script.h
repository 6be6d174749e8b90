// Script: what every rank does in every round of a plan, with bytes and seconds in place of
// tensors. It is what the engine (runtime/engine) would do, rank by rank and in its order: a
// round's transfers in the plan's order, those without payload left out, then the round's computes,
// then, when the transfers are done, the merging of partials that came. Immutable value; 16 bytes a
// message, so that a thousand ranks fit.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "sharding/cluster.h"
#include "sharding/plan.h"
#include "sharding/work.h"

namespace annulus {

struct Message {
  int16_t source = 0;
  int16_t destination = 0;
  int32_t round = 0;
  int64_t bytes = 0;
};

inline constexpr int kScriptRanksMax = 1 << 14;

class Script {
 public:
  // messages: by ascending round, within a round in the order in which every rank posts its own.
  // compute_s, merge_s: [rounds, world] seconds.
  Script(int world, int rounds, std::vector<Message> messages, std::vector<double> compute_s,
         std::vector<double> merge_s);

  // A plan whose rows are at home on the ranks (Home::kOwners), at most kScriptRanksMax of them.
  // A rank computes and merges for as long as the planner's cost model says (sharding/cluster.h).
  static Script Of(const Plan& plan, const PlanLoads& loads, const ClusterModel& cluster);

  int world() const { return world_; }
  int rounds() const { return rounds_; }
  const std::vector<Message>& messages() const { return messages_; }
  double compute_s(int round, int rank) const { return compute_s_[Cell(round, rank)]; }
  double merge_s(int round, int rank) const { return merge_s_[Cell(round, rank)]; }

  // What `rank` posts when it enters `round`: indices of messages.
  absl::Span<const uint32_t> Sends(int round, int rank) const {
    return sends_.Of(Cell(round, rank));
  }
  absl::Span<const uint32_t> Receives(int round, int rank) const {
    return receives_.Of(Cell(round, rank));
  }

 private:
  // Message indices by cell, ascending within each.
  struct Lists {
    std::vector<uint32_t> begin;  // one more than cells
    std::vector<uint32_t> items;
    absl::Span<const uint32_t> Of(size_t cell) const {
      return {items.data() + begin[cell], begin[cell + 1] - begin[cell]};
    }
  };
  size_t Cell(int round, int rank) const {
    return static_cast<size_t>(round) * static_cast<size_t>(world_) + static_cast<size_t>(rank);
  }
  template <typename RankOf>
  Lists ListBy(RankOf rank_of) const;

  int world_;
  int rounds_;
  std::vector<Message> messages_;
  std::vector<double> compute_s_;
  std::vector<double> merge_s_;
  Lists sends_;
  Lists receives_;
};

}  // namespace annulus
