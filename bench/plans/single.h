// The time that one rank alone needs for the whole problem: what the ranks of a plan are held
// against. Uses the backend's threads.
#pragma once

#include "absl/status/statusor.h"
#include "attention/backend.h"
#include "bench/plans/inputs.h"
#include "sharding/plan.h"

namespace annulus {

struct SingleTime {
  double seconds = 0;  // for the whole problem; 0: not measured
  double share = 0;    // of the problem's work that was timed, at most 1
};

// Makes the whole KV here; without room for it in half of the free memory, or on the GPU, nothing
// is measured. A problem that would take longer than `limit_s` is timed by query blocks spread
// evenly over the context, as many as fit, and the time scaled by work_pairs. The median of up to
// `repeat` runs.
absl::StatusOr<SingleTime> MeasureSingle(const Inputs& inputs, const Problem& problem, float scale,
                                         Backend& backend, int threads, double limit_s, int repeat);

}  // namespace annulus
