// What a coordinator tells of its cluster beside its Status: what has become of workers and
// contexts since it began, what goes on, and who holds what; for metrics and pages. A plain value.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "runtime/coordinator/core/places.h"

namespace annulus {

struct ClusterView {
  uint64_t workers_joined = 0;
  uint64_t workers_left = 0;
  uint64_t workers_lost = 0;
  uint64_t moves_done = 0;
  uint64_t moves_failed = 0;
  uint64_t moved_bytes = 0;                // that new holders were sent, of moves that failed too
  bool moving = false;                     // a context, now
  int64_t contexts_recovering = 0;         // that wait for workers to join again
  absl::Duration recovery_time;            // that they wait, or that the last ones did
  std::vector<ContextPlaces> places = {};  // of the first contexts, as many as were asked for
};

}  // namespace annulus
