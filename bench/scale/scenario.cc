#include "bench/scale/scenario.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "bench/scale/script.h"
#include "runtime/cli/problem.h"
#include "sharding/work.h"

namespace annulus {
namespace {

// Sets what the row says of its work.
void WeighWork(const Plan& plan, const PlanLoads& loads, const ClusterModel& cluster,
               ScaleRow* row) {
  std::vector<int64_t> pairs(static_cast<size_t>(plan.world()));
  ComputeLoad all;
  for (size_t s = 0; s < loads.size(); ++s) {
    for (size_t c = 0; c < loads[s].size(); ++c) {
      pairs[static_cast<size_t>(plan.rounds()[s].computes[c].rank)] += loads[s][c].work_pairs;
      all.work_pairs += loads[s][c].work_pairs;
      all.tokens_read += loads[s][c].tokens_read;
    }
  }
  row->work_s = ComputeSeconds(cluster, plan.problem(), all) / plan.world();
  const auto most = static_cast<double>(*std::max_element(pairs.begin(), pairs.end()));
  if (all.work_pairs > 0) {
    row->max_over_mean_work = most * plan.world() / static_cast<double>(all.work_pairs);
  }
}

absl::StatusOr<Plan> PlanOf(const Scenario& scenario, const Problem& problem,
                            const ClusterModel& cluster) {
  if (scenario.stages != kStagesOfPlanner) {
    return BuildPlan(scenario.plan, problem, scenario.stages);
  }
  ANNULUS_ASSIGN_OR_RETURN(Decision decision, Choose(problem, cluster, scenario.plan));
  return std::move(decision.plan);
}

}  // namespace

const std::vector<Scenario>& Scenarios() {
  static const auto* const scenarios = new std::vector<Scenario>{
      {"ring", PlanKind::kRing, "causal"},
      {"mesh", PlanKind::kMesh, "causal"},
      {"group-cast", PlanKind::kGroupCast, "s2(64,16,16)", false, 8},
      {"decode", PlanKind::kPassQ, "causal", /*decode=*/true},
  };
  return *scenarios;
}

absl::StatusOr<ScaleRow> Play(const Series& series, const Shape& shape, int world,
                              const ClusterModel& cluster) {
  ScaleRow row;
  row.series = series;
  row.shape = shape;
  row.world = world;
  row.tokens = series.tokens * (series.scaling == Scaling::kWeak ? world : 1);
  ANNULUS_ASSIGN_OR_RETURN(const Problem problem,
                           MakeProblem({.q_tokens = series.scenario.decode ? 1 : row.tokens,
                                        .kv_tokens = row.tokens,
                                        .heads = shape.heads,
                                        .kv_heads = shape.kv_heads,
                                        .head_dim = shape.head_dim,
                                        .v_head_dim = shape.head_dim,
                                        .dtype = shape.dtype,
                                        .workers = world,
                                        .placement = {},
                                        .pattern = series.scenario.pattern}));
  // A plan of a thousand ranks is large: it goes before its script is played.
  const auto script_of = [&]() -> absl::StatusOr<Script> {
    ANNULUS_ASSIGN_OR_RETURN(const Plan plan, PlanOf(series.scenario, problem, cluster));
    const PlanLoads loads = ComputeLoads(plan);
    WeighWork(plan, loads, cluster, &row);
    return Script::Of(plan, loads, cluster);
  };
  ANNULUS_ASSIGN_OR_RETURN(const Script script, script_of());
  row.messages = static_cast<int64_t>(script.messages().size());
  for (const Message& message : script.messages()) row.bytes_sent += message.bytes;
  row.split = SimulateSplit(script, cluster);
  const int64_t visited_pairs = SizeOf(problem).visited_pairs;
  if (visited_pairs == 0) return row;
  const double flop =
      4.0 * static_cast<double>(visited_pairs) * static_cast<double>(shape.head_dim);
  row.tflops_per_rank = flop / row.split.run.seconds / world / 1e12;
  row.efficiency = row.work_s / row.split.run.seconds;
  return row;
}

}  // namespace annulus
