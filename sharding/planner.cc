#include "sharding/planner.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "sharding/build.h"
#include "sharding/row_table.h"

namespace annulus {
namespace {

// What one round asks of one rank, or of the caller.
class StepLoad {
 public:
  void AddCompute(const ComputeLoad& load) { compute_ += load; }
  void AddMessage(bool sends, bool inside, int64_t bytes) {
    Link& link = links_[(sends ? 2 : 0) + (inside ? 1 : 0)];
    link.bytes += bytes;
    ++link.messages;
  }
  void AddArrived(int64_t partial_rows) { arrived_rows_ += partial_rows; }

  // The terms of the model, and of communication the part that is latency.
  struct Terms {
    double compute_s = 0;
    double comm_s = 0;
    double latency_s = 0;
    double merge_s = 0;
  };
  Terms Seconds(const ClusterModel& cluster, const Problem& problem) const {
    Terms terms;
    terms.compute_s = ComputeSeconds(cluster, problem, compute_);
    terms.merge_s = MergeSeconds(cluster, problem, arrived_rows_);
    for (size_t i = 0; i < links_.size(); ++i) {
      const bool inside = i % 2 == 1;
      const double link_s = LinkSeconds(cluster, inside, links_[i].bytes, links_[i].messages);
      if (link_s <= terms.comm_s) continue;
      terms.comm_s = link_s;
      terms.latency_s = LinkSeconds(cluster, inside, 0, links_[i].messages);
    }
    return terms;
  }

 private:
  struct Link {
    int64_t bytes = 0;
    int64_t messages = 0;
  };
  ComputeLoad compute_;
  int64_t arrived_rows_ = 0;
  std::array<Link, 4> links_;
};

// Adds a round's seconds: the slowest rank's of each term, and what is not hidden.
void AddStep(const std::vector<StepLoad>& ends, const ClusterModel& cluster, const Problem& problem,
             PlanCost* cost) {
  StepLoad::Terms most;
  double hidden_s = 0, step_s = 0;
  for (const StepLoad& end : ends) {
    const StepLoad::Terms terms = end.Seconds(cluster, problem);
    const double both_s = std::max(terms.compute_s, terms.comm_s);
    hidden_s = std::max(hidden_s, both_s);
    step_s = std::max(step_s, both_s + terms.merge_s);
    most.compute_s = std::max(most.compute_s, terms.compute_s);
    if (terms.comm_s > most.comm_s) {
      most.comm_s = terms.comm_s;
      most.latency_s = terms.latency_s;
    }
  }
  cost->cost_s += step_s;
  cost->compute_s += most.compute_s;
  cost->comm_s += most.comm_s;
  cost->latency_s += most.latency_s;
  cost->exposed_comm_s += hidden_s - most.compute_s;
  cost->merge_s += step_s - hidden_s;
}

PlanCost CostWith(const Plan& plan, const ClusterModel& cluster, const PlanLoads& loads) {
  const Problem& problem = plan.problem();
  PlanCost cost;
  cost.kind = plan.kind();
  cost.stages = plan.stages();
  for (int rank = 0; rank < plan.world(); ++rank) {
    cost.workers.push_back(
        {.worker = rank, .kv_tokens = problem.kv.Blocks(rank).TokenCount(problem.kv_tokens)});
  }
  for (size_t s = 0; s < plan.rounds().size(); ++s) {
    const Round& round = plan.rounds()[s];
    std::vector<StepLoad> ends(static_cast<size_t>(plan.world()) + 1);  // kCaller first
    for (const Transfer& t : round.transfers) {
      const int64_t bytes = plan.Bytes(t);
      const bool inside = Inside(cluster, t.source, t.destination, plan.world());
      ends[t.source + 1].AddMessage(true, inside, bytes);
      ends[t.destination + 1].AddMessage(false, inside, bytes);
      if (t.kind == Transfer::Kind::kPartial) {
        ends[t.destination + 1].AddArrived(problem.Rows(t.blocks) * t.heads.count);
      }
      if (t.source != kCaller) cost.workers[t.source].bytes_sent += bytes;
      if (t.destination != kCaller) cost.workers[t.destination].bytes_received += bytes;
      cost.bytes_total += bytes;
      cost.bytes_between += inside ? 0 : bytes;
    }
    for (size_t c = 0; c < round.computes.size(); ++c) {
      const ComputeLoad& load = loads[s][c];
      ends[round.computes[c].rank + 1].AddCompute(load);
      cost.workers[round.computes[c].rank].work_pairs += load.work_pairs;
    }
    AddStep(ends, cluster, problem, &cost);
  }
  int64_t most = 0;
  double total = 0;
  for (const WorkerLoad& worker : cost.workers) {
    most = std::max(most, worker.work_pairs);
    total += static_cast<double>(worker.work_pairs);
  }
  if (most > 0) cost.imbalance = static_cast<double>(most) * plan.world() / total;
  return cost;
}

// More stages hide more but cost messages and launches. A plan over very many ranks is itself so
// large that only few are tried.
std::vector<int> StagesWorthTrying(const Problem& problem) {
  constexpr int kWorldOfFew = 256;
  if (problem.world() >= kWorldOfFew) return {1, std::min(4, problem.kv_heads)};
  std::vector<int> worth = {0, 1};
  for (int stages = 2; stages <= std::min(8, problem.kv_heads); stages *= 2) {
    worth.push_back(stages);
  }
  return worth;
}

}  // namespace

ProblemSize SizeOf(const Problem& problem, const Stop& stop) {
  ProblemSize size;
  const int members = problem.pattern.members();
  for (int member = 0; member < members; ++member) {
    const Pattern& pattern = problem.pattern.Member(member);
    std::map<int, PairCount> by_class;
    for (int head = 0; head < problem.kv_heads; ++head) {
      const auto [at, is_new] = by_class.try_emplace(pattern.HeadClass(head));
      if (is_new) {
        at->second = pattern.CountPairs(head, problem.q_range(), problem.keys().end, stop);
      }
      size.visited_pairs += at->second.visited * (problem.group() / members);
      size.work_pairs += at->second.work * (problem.group() / members);
    }
  }
  size.density = static_cast<double>(size.visited_pairs) /
                 (static_cast<double>(problem.heads) * static_cast<double>(problem.q_tokens) *
                  static_cast<double>(problem.kv_tokens));
  return size;
}

PlanCost Cost(const Plan& plan, const ClusterModel& cluster) {
  return CostWith(plan, cluster, ComputeLoads(plan));
}

absl::StatusOr<Decision> Choose(const Problem& problem, const ClusterModel& cluster,
                                std::optional<PlanKind> asked, const Stop& stop) {
  ANNULUS_RETURN_IF_ERROR(CheckProblem(problem));
  ThreadPool pool(PlanningThreads(problem));
  const RowTable rows(problem, pool, stop);
  ANNULUS_RETURN_IF_ERROR(stop.status());
  std::vector<Plan> plans;
  for (PlanKind kind : kPlanKinds) {
    if (kind == PlanKind::kGroupCast) {
      const GroupCast group_cast(problem, rows, pool, stop);
      for (int stages : StagesWorthTrying(problem)) {
        ANNULUS_RETURN_IF_ERROR(stop.status());
        plans.push_back(group_cast.Build(stages));
      }
    } else if (kind == PlanKind::kPassQ) {
      plans.push_back(BuildPassQ(problem, rows, stop));
    } else {
      plans.push_back(BuildRing(kind, problem, &rows));
    }
  }
  std::vector<const Plan*> all;
  for (const Plan& plan : plans) all.push_back(&plan);
  const std::vector<PlanLoads> loads = ComputeLoads(all, rows, pool, stop);
  ANNULUS_RETURN_IF_ERROR(stop.status());

  // Of each kind the cheapest.
  std::vector<PlanCost> candidates;
  for (size_t i = 0; i < plans.size(); ++i) {
    PlanCost cost = CostWith(plans[i], cluster, loads[i]);
    if (candidates.empty() || candidates.back().kind != cost.kind) {
      candidates.push_back(std::move(cost));
    } else if (cost.cost_s < candidates.back().cost_s) {
      candidates.back() = std::move(cost);
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const PlanCost& a, const PlanCost& b) { return a.cost_s < b.cost_s; });
  const PlanKind kind = asked.value_or(candidates.front().kind);
  const PlanCost& best = *std::find_if(candidates.begin(), candidates.end(),
                                       [kind](const auto& cost) { return cost.kind == kind; });
  Plan& chosen = *std::find_if(plans.begin(), plans.end(), [&](const Plan& plan) {
    return plan.kind() == kind && plan.stages() == best.stages;
  });
  return Decision{std::move(chosen), std::move(candidates)};
}

const PlanCost& Lightest(const std::vector<PlanCost>& candidates,
                         absl::FunctionRef<bool(PlanKind)> eligible) {
  constexpr double kSameCost = 1.03;
  const PlanCost* cheapest = nullptr;
  const PlanCost* lightest = nullptr;
  for (const PlanCost& cost : candidates) {
    if (!eligible(cost.kind)) continue;
    if (cheapest == nullptr) cheapest = lightest = &cost;
    if (cost.cost_s > cheapest->cost_s * kSameCost) break;
    if (cost.bytes_total < lightest->bytes_total) lightest = &cost;
  }
  ANNULUS_CHECK(lightest != nullptr);
  return *lightest;
}

}  // namespace annulus
