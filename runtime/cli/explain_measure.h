// `annulus explain --measure`: the candidates of a decision run in this process, over random
// tensors, so that what the cost model says stands beside what happens.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "sharding/planner.h"

namespace annulus {

// Bytes of q, k, v and the ranks' own copies of them at most.
inline constexpr int64_t kMeasuredBytesMax = int64_t{8} << 30;

// One candidate's run, the second of two.
struct MeasuredPlan {
  double elapsed_s = 0;
  double compute_s = 0;       // of the rank that computed longest
  double exposed_comm_s = 0;  // that it waited for transfers
  int64_t bytes_moved = 0;    // counted at the exchange
};

// In the order of decision.candidates. INVALID_ARGUMENT where the tensors are too large.
absl::StatusOr<std::vector<MeasuredPlan>> Measure(const Decision& decision, const Problem& problem,
                                                  const ClusterModel& model);

}  // namespace annulus
