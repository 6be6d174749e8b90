// What has become of workers and contexts since a coordinator began, and what goes on; for metrics
// and pages. A plain value.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace annulus {

struct ClusterCounts {
  uint64_t workers_joined = 0;
  uint64_t workers_left = 0;
  uint64_t workers_lost = 0;
  uint64_t moves_done = 0;
  uint64_t moves_failed = 0;
  uint64_t moved_bytes = 0;         // that new holders were sent, of moves that failed too
  bool moving = false;              // a context, now
  int64_t contexts_recovering = 0;  // that wait for workers to join again
  absl::Duration recovery_time;     // that they wait, or that the last ones did
};

}  // namespace annulus
