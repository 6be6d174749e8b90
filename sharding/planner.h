// The planner: what each plan costs by a stated model, and which one is cheapest.
// Pure: the same problem and cluster give the same answer on every machine.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "sharding/cluster.h"
#include "sharding/plan.h"

namespace annulus {

struct WorkerLoad {
  int worker = 0;
  int64_t work_pairs = 0;  // (query head, query, key) pairs computed, block edges included
  int64_t kv_tokens = 0;   // distinct tokens of KV held at the start
  int64_t bytes_sent = 0;
  int64_t bytes_received = 0;
};

// A round costs, on each rank, max(compute, communication) + merge, and the slowest rank (or the
// caller) counts:
//   compute        ComputeSeconds of what it computes in the round, in sum
//   communication  the slowest of its links, each direction, inside and between: LinkSeconds
//   merge          MergeSeconds of the partials that arrive
// Summed over rounds, cost_s = compute_s + exposed_comm_s + merge_s.
struct PlanCost {
  PlanKind kind = PlanKind::kRing;
  int stages = kStagesDefault;  // Plan::stages
  double cost_s = 0;
  double compute_s = 0;       // of the slowest rank
  double comm_s = 0;          // of the slowest rank, hidden or not
  double latency_s = 0;       // what of comm_s is messages, not bytes
  double exposed_comm_s = 0;  // what of comm_s no compute hides
  double merge_s = 0;
  int64_t bytes_total = 0;
  int64_t bytes_between = 0;  // what of bytes_total goes between nodes
  double imbalance = 1;       // max/mean of work_pairs over all ranks; 1 when there is no work
  std::vector<WorkerLoad> workers;
};

// What the pattern asks for, whatever the plan: over all query heads.
struct ProblemSize {
  int64_t visited_pairs = 0;
  int64_t work_pairs = 0;
  double density = 0;  // visited_pairs / (heads·q_tokens·kv_tokens)
};
// Of no meaning once `stop` has stopped.
ProblemSize SizeOf(const Problem& problem, const Stop& stop = {});

// The cost of one plan. At 10M tokens over 64 ranks this takes a second or so: it compiles rows of
// blocks, not tokens. Uses all cores for problems that are worth it, as Choose does.
PlanCost Cost(const Plan& plan, const ClusterModel& cluster);

struct Decision {
  Plan plan;                         // the chosen one
  std::vector<PlanCost> candidates;  // of each kind the best, cheapest first
};

// `asked` fixes the kind; without it the cheapest wins, ties to the earlier in kPlanKinds. What
// `stop` says, once it has stopped.
absl::StatusOr<Decision> Choose(const Problem& problem, const ClusterModel& cluster,
                                std::optional<PlanKind> asked = std::nullopt,
                                const Stop& stop = {});

// For plans that share their machines with other work. Of the eligible `candidates`, cheapest
// first, those that cost at most 3 % more than the first cost the same, since the model is no
// finer: the one of them that moves the fewest bytes, which take the network, and on CPUs the
// cores, from others. At least one must be eligible.
const PlanCost& Lightest(const std::vector<PlanCost>& candidates,
                         absl::FunctionRef<bool(PlanKind)> eligible);

}  // namespace annulus
