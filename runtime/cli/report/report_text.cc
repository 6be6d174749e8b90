#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/quoted.h"
#include "runtime/cli/report/report.h"
#include "runtime/cli/report/table.h"
#include "runtime/cli/report/units.h"

namespace annulus {
namespace {

using Align = Table::Align;

constexpr size_t kWorkersShown = 16;
constexpr size_t kContextsShown = 32;

std::string PercentText(int64_t part, int64_t whole) {
  return absl::StrFormat(
      "%.1f%%", whole == 0 ? 0.0 : 100 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string MoreText(size_t more) {
  return more == 0 ? "" : absl::StrFormat("… and %d more (--json has them all)\n", more);
}

std::string ShapeText(int64_t tokens, int64_t kv_tokens, int heads, int kv_heads, int head_dim,
                      int v_head_dim, DType dtype) {
  return absl::StrFormat("%d queries over %d tokens, %d heads over %d, d %d, d_v %d, %s", tokens,
                         kv_tokens, heads, kv_heads, head_dim, v_head_dim, Name(dtype));
}

std::string MachinesText(const Machines& machines) {
  const ClusterModel& model = machines.model;
  return absl::StrFormat(
      "machines  %s: a worker attains %.4g GFLOP/s (f32 %.4g), reads %.4g GB/s, sends %.4g GB/s "
      "(%.4g between nodes)\n",
      Quoted(machines.source, 200), model.flops / 1e9, model.flops_f32 / 1e9,
      model.read_bytes_per_s / 1e9, model.inside_bytes_per_s / 1e9,
      model.between_bytes_per_s / 1e9);
}

// "group-cast/4": a group-cast in four stages.
std::string PlanText(PlanKind kind, int stages) {
  if (kind != PlanKind::kGroupCast) return std::string(Name(kind));
  return absl::StrFormat("%s/%d", Name(kind), stages);
}

std::string TimesText(const AttendReport& report) {
  const AttendTimes& times = *report.times;
  const PlanCost& predicted = times.predicted;
  Table table({{"", Align::kLeft}, {"total"}, {"compute"}, {"exposed comm"}, {"merge"}});
  table.AddRow({"predicted", SecondsText(predicted.cost_s), SecondsText(predicted.compute_s),
                SecondsText(predicted.exposed_comm_s), SecondsText(predicted.merge_s)});
  table.AddRow({"measured", SecondsText(report.elapsed_s), SecondsText(times.compute_s),
                SecondsText(times.exposed_comm_s), ""});
  return MachinesText(times.machines) + table.ToText();
}

std::string CandidatesText(const ExplainReport& report) {
  Table table({{"plan/stages", Align::kLeft},
               {"cost"},
               {"compute"},
               {"exposed comm"},
               {"merge"},
               {"comm"},
               {"of it latency"},
               {"moves"},
               {"between nodes"},
               {"imbalance"},
               {"", Align::kLeft}});
  for (const PlanCost& candidate : report.decision.candidates) {
    table.AddRow({PlanText(candidate.kind, candidate.stages), SecondsText(candidate.cost_s),
                  SecondsText(candidate.compute_s), SecondsText(candidate.exposed_comm_s),
                  SecondsText(candidate.merge_s), SecondsText(candidate.comm_s),
                  SecondsText(candidate.latency_s), BytesText(candidate.bytes_total),
                  BytesText(candidate.bytes_between), absl::StrFormat("%.3f", candidate.imbalance),
                  candidate.kind == report.decision.plan.kind() ? "chosen" : ""});
  }
  return table.ToText();
}

std::string MeasuredText(const ExplainReport& report) {
  if (report.measured.empty()) return "";
  Table table({{"measured here", Align::kLeft},
               {"total"},
               {"predicted"},
               {"compute"},
               {"predicted"},
               {"exposed comm"},
               {"predicted"}});
  for (size_t i = 0; i < report.measured.size(); ++i) {
    const MeasuredPlan& measured = report.measured[i];
    const PlanCost& cost = report.decision.candidates[i];
    table.AddRow({PlanText(cost.kind, cost.stages), SecondsText(measured.elapsed_s),
                  SecondsText(cost.cost_s), SecondsText(measured.compute_s),
                  SecondsText(cost.compute_s), SecondsText(measured.exposed_comm_s),
                  SecondsText(cost.exposed_comm_s)});
  }
  return "\n" + table.ToText();
}

std::string ListsText(const ExplainReport& report) {
  std::string text;
  for (const NamedList& list : report.problem.pattern.lists()) {
    if (report.is_stand_in(list.name)) continue;
    const KeyListData& data = list.list->data();
    int efficient = 0;
    for (int head = 0; head < data.heads; ++head) {
      efficient += list.list->kv_efficient(head) ? 1 : 0;
    }
    absl::StrAppendFormat(&text,
                          "list      %s: %d %s by %s for %d heads, %d of them KV-efficient (what a "
                          "row does not see, no later row sees)\n",
                          list.name, data.keys.size(), Name(data.unit), Name(data.rows), data.heads,
                          efficient);
  }
  return text;
}

std::string StandInsText(const std::vector<std::string>& stand_ins) {
  if (stand_ins.empty()) return "";
  return absl::StrFormat(
      "chosen    %s: the keys nearest to each query stand for those that data would choose. Pairs "
      "are right; where they lie, and what reads and moves them, depends on the data\n",
      absl::StrJoin(stand_ins, ", "));
}

std::string LoadsText(const std::vector<WorkerLoad>& workers) {
  Table table({{"worker"}, {"pairs computed"}, {"kv tokens"}, {"sends"}, {"receives"}});
  const size_t shown = std::min(workers.size(), kWorkersShown);
  for (size_t i = 0; i < shown; ++i) {
    const WorkerLoad& load = workers[i];
    table.AddRow({absl::StrCat(load.worker), absl::StrCat(load.work_pairs),
                  absl::StrCat(load.kv_tokens), BytesText(load.bytes_sent),
                  BytesText(load.bytes_received)});
  }
  return table.ToText() + MoreText(workers.size() - shown);
}

// What workers say of themselves, as it is only if a terminal shows it so.
std::string Printable(const std::string& text) {
  return std::all_of(text.begin(), text.end(), absl::ascii_isprint)
             ? text
             : absl::Utf8SafeCHexEscape(text);
}

}  // namespace

std::string ToText(const AttendReport& report) {
  return absl::StrFormat(
      "%s\npattern   %s\nplan      %s on %d worker%s, backend %s\n"
      "pairs     %d visited\ntime      %s\nmoved     %s, planned %s\n%s",
      ShapeText(report.tokens, report.kv_tokens, report.heads, report.kv_heads, report.head_dim,
                report.v_head_dim, report.dtype),
      Quoted(report.pattern, 200), report.plan, report.workers, report.workers == 1 ? "" : "s",
      report.backend, report.visited_pairs, SecondsText(report.elapsed_s),
      BytesText(report.bytes_moved), BytesText(report.planned_bytes),
      report.times.has_value() ? TimesText(report) : "");
}

std::string ToText(const ExplainReport& report) {
  const Problem& problem = report.problem;
  const PlanKind chosen = report.decision.plan.kind();
  const auto cost =
      std::find_if(report.decision.candidates.begin(), report.decision.candidates.end(),
                   [&](const PlanCost& candidate) { return candidate.kind == chosen; });
  return absl::StrFormat(
      "%s\npattern   %s\nplaced    %s over %d workers\n"
      "density   %.4g: %d pairs visited, %d computed\n"
      "coverage  some head shows %.2f%% of the keys to some query, %.2f%% to the last one; a "
      "head's cache keeps %.2f%% of the KV\n%s%s%s\n%s%s\n%s",
      ShapeText(problem.q_tokens, problem.kv_tokens, problem.heads, problem.kv_heads,
                problem.head_dim, problem.v_head_dim, problem.dtype),
      Quoted(problem.pattern.text(), 200), problem.home_partition.ToString(), problem.world(),
      report.size.density, report.size.visited_pairs, report.size.work_pairs,
      100 * report.coverage.covered, 100 * report.coverage_last, 100 * report.coverage.kept_kv,
      StandInsText(report.stand_ins), ListsText(report), MachinesText(report.machines),
      CandidatesText(report), MeasuredText(report), LoadsText(cost->workers));
}

int64_t TokensOf(const ContextInfo& context) {
  const absl::Span<const int64_t> layers =
      absl::MakeConstSpan(context.tokens)
          .first(std::min<size_t>(context.tokens.size(), context.spec.layers));
  return layers.empty() ? 0 : *std::max_element(layers.begin(), layers.end());
}

int64_t ContextsOf(const ClusterStatus& status) {
  return std::ssize(status.contexts) + status.contexts_left_out;
}

std::string LeaseText(double lease) {
  return lease == 0 ? "none" : absl::StrCat(lease, " s");
}

std::string ToText(absl::Span<const ContextInfo> contexts) {
  Table table({{"context", Align::kLeft},
               {"state", Align::kLeft},
               {"epoch"},
               {"layers"},
               {"tokens"},
               {"kv"},
               {"of dense"},
               {"unused"},
               {"lease"},
               {"evictable"},
               {"owner", Align::kLeft}});
  for (const ContextInfo& context : contexts) {
    table.AddRow(
        {absl::StrCat(context.id), context.state, absl::StrCat(context.epoch),
         absl::StrCat(context.spec.layers), absl::StrCat(TokensOf(context)),
         BytesText(context.kv_bytes), PercentText(context.kv_bytes, context.dense_kv_bytes),
         absl::StrFormat("%.1f s", context.idle_s), LeaseText(context.spec.lease),
         context.spec.evictable ? "yes" : "no", absl::Utf8SafeCHexEscape(context.spec.owner)});
  }
  return table.ToText();
}

std::string ToText(const ClusterStatus& status) {
  std::string text = absl::StrFormat("epoch %d, %d contexts, %d workers, %d calls in flight (%s)\n",
                                     status.epoch, ContextsOf(status), status.workers.size(),
                                     status.in_flight, BytesText(status.in_flight_bytes));
  Table table({{"worker", Align::kLeft},
               {"name", Align::kLeft},
               {"state", Align::kLeft},
               {"backend", Align::kLeft},
               {"kv"},
               {"kv limit"},
               {"used"},
               {"heartbeat"}});
  for (const WorkerStatus& worker : status.workers) {
    table.AddRow({absl::StrCat(worker.id), Printable(worker.name), worker.state,
                  Printable(worker.backend), BytesText(worker.kv_bytes),
                  BytesText(worker.kv_bytes_limit),
                  PercentText(worker.kv_bytes, worker.kv_bytes_limit),
                  absl::StrFormat("%.2f s", worker.heartbeat_age_s)});
  }
  text += table.ToText();
  if (status.contexts.empty()) return text;
  const size_t shown = std::min(status.contexts.size(), kContextsShown);
  text += ToText(absl::MakeConstSpan(status.contexts).first(shown));
  const int64_t more = ContextsOf(status) - static_cast<int64_t>(shown);
  if (more > 0) {
    absl::StrAppendFormat(&text, "… and %d more (`annulus contexts` lists them all)\n", more);
  }
  return text;
}

std::string ToText(const VersionReport& report) {
  return absl::StrFormat("annulus %s (%s build), SIMD %s, transports %s, CUDA %s\n", report.version,
                         report.build_type, report.simd, absl::StrJoin(report.transports, " "),
                         report.cuda ? absl::StrCat("yes: ", report.gpu) : "no");
}

}  // namespace annulus
