// `annulus explain`: what a pattern costs and which plan would run, without any tensor.
#include <algorithm>
#include <utility>

#include "base/status.h"
#include "base/write_file.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/explain_measure.h"
#include "runtime/cli/machines.h"
#include "runtime/cli/options/shared_options.h"
#include "runtime/cli/problem.h"
#include "runtime/cli/report/report.h"
#include "runtime/limits.h"
#include "sharding/picture.h"
#include "sharding/planner.h"

namespace annulus {
namespace {

struct ExplainFlags {
  ProblemFlags problem;
  std::optional<int64_t> q_tokens;
  std::optional<int64_t> v_head_dim;
  std::optional<PlanKind> plan;
  MachineFlags machines;
  std::optional<std::string> svg;
  bool measure = false;
  bool json = false;
};

Options OptionsOf(ExplainFlags* flags) {
  ProblemFlags& problem = flags->problem;
  Options options("explain", "What attention under a pattern costs, and how it would be cut.");
  options.AddRequired("tokens", "N", "tokens of the context",
                      SetCount(&problem.kv_tokens, 1, kContextTokensMax));
  options.Add("q-tokens", "Q", "queries, the context's last (all)",
              SetCount(&flags->q_tokens, 1, kContextTokensMax));
  AddPositions(&options, &problem);
  AddLists(&options, &problem);
  options.AddRequired("heads", "H", "query heads", SetCount(&problem.heads, 1, kPlanHeadsMax));
  options.AddRequired("kv-heads", "K", "KV heads", SetCount(&problem.kv_heads, 1, kPlanHeadsMax));
  options.AddRequired("head-dim", "D", "width of q and k",
                      SetCount(&problem.head_dim, 1, kHeadDimMax));
  options.Add("v-head-dim", "D", "width of v (that of k)",
              SetCount(&flags->v_head_dim, 1, kHeadDimMax));
  options.AddFlag("v-is-k-prefix", "V is K's first dims and moves no bytes of its own",
                  &problem.v_is_k_prefix);
  options.Add("workers", "W", "workers (1)", SetCount(&problem.workers, 1, kPlanWorkersMax));
  options.AddRequired("pattern", "P", "which keys each query sees", SetText(&problem.pattern));
  options.Add("dtype", "f32|f16|bf16", "of q, k and v (bf16)",
              SetParsed(&problem.dtype, ParseDType));
  AddPlacement(&options, &problem.placement);
  AddPlan(&options, &flags->plan);
  AddMachines(&options, &flags->machines);
  options.Add("svg", "F", "where a picture of the block map goes", SetText(&flags->svg));
  options.AddFlag("measure", "run every candidate here, over random tensors, beside its cost",
                  &flags->measure);
  options.AddFlag("json", "one JSON line on stdout", &flags->json);
  return options;
}

}  // namespace

absl::Status RunExplain(const Arguments& args, const Console& console) {
  ExplainFlags flags;
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           OptionsOf(&flags).Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  flags.problem.q_tokens = flags.q_tokens.value_or(flags.problem.kv_tokens);
  flags.problem.v_head_dim = flags.v_head_dim.value_or(flags.problem.head_dim);
  std::vector<NamedPath> inputs;
  for (const ListFile& list : flags.problem.list_files) inputs.push_back({"--list", list.path});
  AddFiles(flags.machines, &inputs);
  ANNULUS_RETURN_IF_ERROR(CheckOutputs({{"--svg", flags.svg}}, inputs));
  ANNULUS_RETURN_IF_ERROR(ReadLists(&flags.problem));
  std::vector<std::string> stand_ins;
  ANNULUS_RETURN_IF_ERROR(StandInLists(&flags.problem, &stand_ins));
  ANNULUS_ASSIGN_OR_RETURN(const Problem problem, MakeProblem(flags.problem));
  ANNULUS_ASSIGN_OR_RETURN(const Machines machines,
                           MachinesFor(flags.machines, "auto", flags.problem.workers,
                                       console.environment, *console.err));
  ANNULUS_ASSIGN_OR_RETURN(const Decision decision, Choose(problem, machines.model, flags.plan));
  std::vector<MeasuredPlan> measured;
  if (flags.measure) {
    ANNULUS_ASSIGN_OR_RETURN(measured, Measure(decision, problem, machines.model));
  }
  const TokenRange q = problem.q_range();
  const int64_t keys_end = problem.keys().end;
  const ExplainReport report{problem,
                             decision,
                             SizeOf(problem),
                             Coverage(problem.pattern, q, keys_end),
                             Coverage(problem.pattern, {q.end - 1, q.end}, keys_end).covered,
                             machines,
                             measured,
                             stand_ins};
  if (flags.svg.has_value()) {
    const auto chosen =
        std::find_if(decision.candidates.begin(), decision.candidates.end(),
                     [&](const PlanCost& cost) { return cost.kind == decision.plan.kind(); });
    ANNULUS_RETURN_IF_ERROR(
        WriteFile(*flags.svg, {BlockMapSvg(decision.plan, *chosen, report.size)}));
  }
  if (flags.json) {
    *console.out << ToJson(report) << std::flush;
  } else {
    *console.out << ToText(report) << std::flush;
  }
  return absl::OkStatus();
}

}  // namespace annulus
