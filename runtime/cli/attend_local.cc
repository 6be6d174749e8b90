#include <utility>

#include "absl/time/clock.h"
#include "attention/finish.h"
#include "base/status.h"
#include "runtime/cli/attend.h"
#include "runtime/engine/local_ranks.h"
#include "sharding/planner.h"

namespace annulus {

absl::StatusOr<AttendOutcome> AttendLocally(const AttendFlags& flags, AttendInputs inputs,
                                            const Console& console) {
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                           MakeBackend(flags.backend, /*threads=*/0));
  inputs.q.RoundTo(inputs.problem.dtype);
  inputs.k.RoundTo(inputs.problem.dtype);
  if (inputs.v.has_value()) inputs.v->RoundTo(inputs.problem.dtype);
  const absl::Time select_begin = absl::Now();
  ANNULUS_RETURN_IF_ERROR(
      SelectLists(inputs.q.view(), inputs.k.view(), inputs.scale, *backend, &inputs.problem));
  const double select_s = absl::ToDoubleSeconds(absl::Now() - select_begin);
  ANNULUS_ASSIGN_OR_RETURN(const Problem problem, MakeProblem(inputs.problem));
  ANNULUS_ASSIGN_OR_RETURN(
      Machines machines,
      MachinesFor(flags.machines, flags.backend, flags.workers, console.environment, *console.err));
  ANNULUS_ASSIGN_OR_RETURN(const Decision decision, Choose(problem, machines.model, flags.plan));
  AttendOutcome outcome;
  outcome.report = ReportOf(flags, inputs);
  ANNULUS_ASSIGN_OR_RETURN(const LocalRanks ranks,
                           LocalRanks::Create(decision.plan, inputs.q.view(), inputs.k.view(),
                                              inputs.v_view(), *backend));
  std::vector<double> elapsed_s, compute_s, wait_s;
  for (int i = 0; i < flags.repeat; ++i) {
    const absl::Time begin = absl::Now();
    ANNULUS_ASSIGN_OR_RETURN(LocalRun run, ranks.Run(inputs.scale));
    elapsed_s.push_back(select_s + absl::ToDoubleSeconds(absl::Now() - begin));
    compute_s.push_back(run.compute_s);
    wait_s.push_back(run.wait_s);
    outcome.report.bytes_moved = run.bytes_moved;
    outcome.lse = std::move(run.result).TakeLse();
    outcome.out = std::move(run.result).TakeOut();
  }
  AddSinks(flags.sinks, {outcome.out.f32(), outcome.lse.f32(), outcome.out.tokens(),
                         outcome.out.heads(), outcome.out.dim()});
  outcome.report.plan = std::string(Name(decision.plan.kind()));
  outcome.report.backend = backend->capabilities().name;
  outcome.report.workers = flags.workers;
  outcome.report.visited_pairs = SizeOf(problem).visited_pairs;
  outcome.report.elapsed_s = MedianOf(std::move(elapsed_s));
  outcome.report.planned_bytes = decision.plan.BytesTotal();
  AttendTimes times{
      std::move(machines), {}, MedianOf(std::move(compute_s)), MedianOf(std::move(wait_s))};
  for (const PlanCost& cost : decision.candidates) {
    if (cost.kind == decision.plan.kind()) times.predicted = cost;
  }
  outcome.report.times = std::move(times);
  return outcome;
}

}  // namespace annulus
