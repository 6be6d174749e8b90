// The tensor work of an Attend: plans it, packs each rank's queries, merges each rank's answer once
// and finalises. Not thread-safe; the planner may be shared.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "attention/partial.h"
#include "base/clock.h"
#include "base/lru_cache.h"
#include "base/stop.h"
#include "runtime/coordinator/call_work.h"
#include "runtime/coordinator/pattern_cache.h"
#include "sharding/planner.h"

namespace annulus {

// Plans, and remembers them: a plan depends on the context, its epoch, the pattern and lengths, but
// not on the layer, so the layers of one step plan once. Thread-safe.
class AttendPlanner {
 public:
  struct Planned {
    Plan plan;
    ProblemSize size;
    PlanCost cost;
  };

  // `shared`: the cluster's figures are those of one worker alone on its node; the workers of a
  // context share them.
  explicit AttendPlanner(const ClusterModel& cluster, bool shared = false)
      : cluster_(cluster), shared_(shared) {}

  // INVALID_ARGUMENT for a pattern that does not parse or does not fit the context, and for a plan
  // that a KV-efficient context cannot have: only group-cast and pass-q send what is read and leave
  // the rest. What `stop` says once it has stopped: then nothing is remembered.
  absl::StatusOr<std::shared_ptr<const Planned>> PlanFor(const ShardMap& map,
                                                         const AttendRequest& request,
                                                         const Stop& stop);

 private:
  const ClusterModel cluster_;
  const bool shared_;
  // Context, epoch, pattern, plan, and where queries and keys are.
  using Key = std::array<int64_t, 9>;

  PatternCache patterns_;
  std::mutex mutex_;
  LruCache<std::shared_ptr<const Planned>, Key, NumbersHash> plans_{64};
};

class AttendWork final : public CallWork {
 public:
  // All must outlive this. `stop`: once the caller does not wait any more.
  AttendWork(const AttendRequest& request, absl::Time deadline, AttendPlanner& planner,
             const Clock& clock, Stop stop = {});

  absl::StatusOr<PreparedWork> Prepare(const action::Admit& admit) override;
  absl::Status OnAnswer(RankAnswer answer) override;

  // After the call has ended: the finalised answer, or why there is none. Logs the call.
  absl::StatusOr<AttendResult> TakeResult(const absl::Status& ended) &&;

 private:
  bool TakesPart(int rank) const;
  void Trace(absl::string_view name, absl::Time begin);

  const AttendRequest& request_;
  const std::string request_id_;  // the caller's, or made up
  const absl::Time begin_;
  const absl::Time deadline_;
  AttendPlanner& planner_;
  const Clock& clock_;
  const Stop stop_;

  std::shared_ptr<const AttendPlanner::Planned> planned_;
  Partial merged_;
  AttendResult result_;
};

}  // namespace annulus
