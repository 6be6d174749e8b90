// Words of a call's pattern that choose keys by the weights of its last queries
// (attention/column_selector.h): their lists are made by a column pass of their own, before the
// call itself. Calls on the caller's thread; thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "annulus/key_list.h"
#include "runtime/coordinator/calls/column_call.h"

namespace annulus {

struct ListsByColumns {
  std::vector<CallList> lists;
  uint64_t epoch = 0;
  std::optional<int64_t> truncations;  // as request::WorkItem, once there are lists
  bool others = false;  // whether the pattern has more words that choose keys, without lists
};

// Nothing where the pattern has no such words without a list, and where it does not parse, which
// the call itself finds. INVALID_ARGUMENT for a KV-efficient context and as
// ColumnPass::CheckWeights and the words.
absl::StatusOr<ListsByColumns> SelectByColumns(const AttendRequest& request,
                                               const CallContext& call, CallPlanner& planner,
                                               const Clock& clock, LookAt look, RunTrip run_trip);

}  // namespace annulus
