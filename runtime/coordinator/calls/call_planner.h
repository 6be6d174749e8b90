// CallPlanner: plans calls, and remembers the plans: one depends on the context, its epoch, the
// pattern and where queries and keys are, but not on the layer. That of a step is a pass-q of whole
// query blocks, so that it holds for 64 steps and all layers. Thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/lru_cache.h"
#include "base/stop.h"
#include "runtime/context/bound_patterns.h"
#include "runtime/context/pattern_cache.h"
#include "runtime/coordinator/calls/kept_lists.h"
#include "runtime/coordinator/core/events.h"
#include "sharding/planner.h"

namespace annulus {

// Where a rank's partial of a step goes, and how many others are merged into it before.
struct MergePlace {
  int into = kCaller;  // a rank, or kCaller
  int from = 0;
};

// A plan and what follows from it.
struct Planned {
  Plan plan;
  ProblemSize size = {};              // not of a step's
  PlanCost cost = {};                 // likewise
  std::vector<bool> takes_part = {};  // by rank
  bool exchanges = false;             // whether ranks have something to tell each other
  // Of a step's plan, by rank; empty if all partials go straight to the caller.
  std::vector<MergePlace> merging = {};
};

class CallPlanner {
 public:
  // `shared`: the cluster's figures are those of one worker alone on its node; the workers of a
  // context share them.
  // `list_cache_bytes`, `first_list`: as KeptLists.
  explicit CallPlanner(const ClusterModel& cluster = {}, bool shared = false,
                       int64_t list_cache_bytes = 0, uint64_t first_list = 0)
      : cluster_(cluster), shared_(shared), lists_(list_cache_bytes, first_list) {}

  KeptLists& lists() { return lists_; }

  // As KeptLists. Plans with lists that are forgotten are forgotten too.
  absl::Status Resolve(const std::string& tenant, std::vector<CallList>* lists);

  // What an item's queries are attended with: `asked`, or the context's pattern if that is empty.
  absl::StatusOr<std::shared_ptr<const Pattern>> PatternFor(const ShardMap& map, int layer,
                                                            const std::string& asked) {
    return patterns_.PatternOf(map.retention, layer, asked);
  }

  // The plan of an item that attends, with `pattern` if that is not empty and with `lists`; `kind`
  // absent: the cheapest. What lists made is remembered if all of them are kept. INVALID_ARGUMENT
  // for a pattern that does not parse or does not fit the context, and for a plan that a
  // KV-efficient context cannot have: only group-cast and pass-q send what is read and leave the
  // rest. What `stop` says once it has stopped: then nothing is remembered.
  absl::StatusOr<std::shared_ptr<const Planned>> PlanFor(
      const ShardMap& map, const request::WorkItem& ask, const std::string& pattern,
      const std::vector<CallList>& lists, std::optional<PlanKind> kind, const Stop& stop);

  // The same of an Attend that was planned before, else null.
  std::shared_ptr<const Planned> Recall(const ShardMap& map, const request::WorkItem& ask,
                                        const std::string& pattern, std::optional<PlanKind> kind);

 private:
  using PlannedPtr = std::shared_ptr<const Planned>;
  // Context, epoch, pattern, plan, and where queries and keys are.
  using Key = std::array<int64_t, 9>;

  static Key KeyOf(const ShardMap& map, const request::WorkItem& ask, const Pattern& pattern,
                   std::optional<PlanKind> kind, TokenRange q);

  std::vector<NumberedList> Numbered(const std::vector<CallList>& lists) const;
  absl::StatusOr<Planned> PlanStep(const ShardMap& map, TokenRange q, const Pattern& pattern,
                                   const Stop& stop) const;
  absl::StatusOr<Planned> PlanAttend(const ShardMap& map, const request::WorkItem& ask,
                                     const Pattern& pattern, std::optional<PlanKind> kind,
                                     const Stop& stop) const;

  const ClusterModel cluster_;
  const bool shared_;
  PatternCache patterns_;
  KeptLists lists_;
  BoundPatterns bound_;
  std::mutex mutex_;  // of the next two
  LruCache<PlannedPtr, Key, NumbersHash> of_attends_{64};
  LruCache<PlannedPtr, Key, NumbersHash> of_steps_{4096};
};

}  // namespace annulus
