// The discrete-event simulation of a script on a cluster. Deterministic; pure functions.
//
// A rank enters a round, posts the round's messages and computes; once its computing and all of its
// messages of the round are done it merges what came and enters the next round. No rank waits for
// any other beyond that. Links: every rank has a port to its own node and one to the other nodes,
// each with two directions. A message moves once both ends have posted it and the sender's and the
// receiver's port are free; it then has both for latency + bytes / bandwidth, as the planner's cost
// model charges it. A port that is free takes the messages of its peers in turn, beginning after
// the peer it served last (at first after its own rank), those of one peer in the order of their
// posting: so that no rank waits for one busy peer while others are free.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "bench/scale/script.h"
#include "sharding/cluster.h"

namespace annulus {

struct RankTime {
  double compute_s = 0;  // and merging
  double waiting_s = 0;  // for messages of a round whose computing is done
  double idle_s = 0;     // from its own end to the last rank's
};

struct SimulatedRun {
  double seconds = 0;  // from the common start to the end of the last rank
  std::vector<RankTime> ranks;
};

// Told what a rank posts as it enters a round: indices of script.messages(), in order.
using PostObserver = std::function<void(int rank, absl::Span<const uint32_t> sends,
                                        absl::Span<const uint32_t> receives)>;

SimulatedRun Simulate(const Script& script, const ClusterModel& cluster,
                      const PostObserver& observer = nullptr);

// Where the time goes: what a cluster without this cost would save. All in seconds, and
// compute + imbalance + bandwidth + latency = seconds.
struct TimeSplit {
  SimulatedRun run;
  double compute_s = 0;    // mean over ranks
  double imbalance_s = 0;  // beyond it with links that cost nothing: the slowest in each dependency
  double bandwidth_s = 0;  // added by bytes over links without latency
  double latency_s = 0;    // added by latency
};
TimeSplit SimulateSplit(const Script& script, const ClusterModel& cluster);

}  // namespace annulus
