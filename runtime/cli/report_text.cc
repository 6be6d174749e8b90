#include <algorithm>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/quoted.h"
#include "runtime/cli/report.h"

namespace annulus {
namespace {

constexpr size_t kWorkersShown = 16;
constexpr size_t kContextsShown = 32;

// "1.5 MiB".
std::string Bytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return absl::StrFormat(unit == 0 ? "%.0f %s" : "%.2f %s", bytes, kUnits[unit]);
}

std::string Bytes(int64_t bytes) {
  return Bytes(static_cast<double>(bytes));
}

double Percent(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : 100 * static_cast<double>(part) / static_cast<double>(whole);
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
  return absl::StrFormat(
      "%s%-10s%14s %14s %14s %14s\n%-10s%14.6f %14.6f %14.6f %14.6f\n%-10s%14.6f %14.6f %14.6f\n",
      MachinesText(times.machines), "", "total s", "compute s", "exposed comm s", "merge s",
      "predicted", predicted.cost_s, predicted.compute_s, predicted.exposed_comm_s,
      predicted.merge_s, "measured", report.elapsed_s, times.compute_s, times.exposed_comm_s);
}

std::string MeasuredText(const ExplainReport& report) {
  if (report.measured.empty()) return "";
  std::string text =
      absl::StrFormat("\n%-16s %12s %12s %12s %12s %14s %14s\n", "measured here", "total s",
                      "predicted s", "compute s", "predicted s", "exposed comm s", "predicted s");
  for (size_t i = 0; i < report.measured.size(); ++i) {
    const MeasuredPlan& measured = report.measured[i];
    const PlanCost& cost = report.decision.candidates[i];
    absl::StrAppendFormat(&text, "%-16s %12.6f %12.6f %12.6f %12.6f %14.6f %14.6f\n",
                          PlanText(cost.kind, cost.stages), measured.elapsed_s, cost.cost_s,
                          measured.compute_s, cost.compute_s, measured.exposed_comm_s,
                          cost.exposed_comm_s);
  }
  return text;
}

}  // namespace

std::string ToText(const AttendReport& report) {
  return absl::StrFormat(
      "%s\npattern   %s\nplan      %s on %d worker%s, backend %s\n"
      "pairs     %d visited\ntime      %.6f s\nmoved     %s, planned %s\n%s",
      ShapeText(report.tokens, report.kv_tokens, report.heads, report.kv_heads, report.head_dim,
                report.v_head_dim, report.dtype),
      Quoted(report.pattern, 200), report.plan, report.workers, report.workers == 1 ? "" : "s",
      report.backend, report.visited_pairs, report.elapsed_s, Bytes(report.bytes_moved),
      Bytes(report.planned_bytes), report.times.has_value() ? TimesText(report) : "");
}

std::string ToText(const ExplainReport& report) {
  const Problem& problem = report.problem;
  const PlanKind chosen = report.decision.plan.kind();
  std::string text = absl::StrFormat(
      "%s\npattern   %s\nplaced    %s over %d workers\n"
      "density   %.4g: %d pairs visited, %d computed\n"
      "coverage  %.2f%% of the keys are seen by some head; a head's cache keeps %.2f%% of the "
      "KV\n%s\n"
      "%-16s %12s %12s %14s %12s %12s %13s %12s %12s %10s\n",
      ShapeText(problem.q_tokens, problem.kv_tokens, problem.heads, problem.kv_heads,
                problem.head_dim, problem.v_head_dim, problem.dtype),
      Quoted(problem.pattern.text(), 200), problem.home_partition.ToString(), problem.world(),
      report.size.density, report.size.visited_pairs, report.size.work_pairs,
      100 * report.coverage.covered, 100 * report.coverage.kept_kv, MachinesText(report.machines),
      "plan/stages", "cost s", "compute s", "exposed comm s", "merge s", "comm s", "of it latency",
      "moves", "between", "imbalance");
  const PlanCost* cost = nullptr;
  for (const PlanCost& candidate : report.decision.candidates) {
    if (candidate.kind == chosen) cost = &candidate;
    absl::StrAppendFormat(
        &text, "%-16s %12.6f %12.6f %14.6f %12.6f %12.6f %13.6f %12s %12s %10.3f%s\n",
        PlanText(candidate.kind, candidate.stages), candidate.cost_s, candidate.compute_s,
        candidate.exposed_comm_s, candidate.merge_s, candidate.comm_s, candidate.latency_s,
        Bytes(candidate.bytes_total), Bytes(candidate.bytes_between), candidate.imbalance,
        candidate.kind == chosen ? "  chosen" : "");
  }
  text += MeasuredText(report);
  absl::StrAppendFormat(&text, "\n%-8s %18s %14s %12s %12s\n", "worker", "pairs computed",
                        "kv tokens", "sends", "receives");
  const size_t shown = std::min(cost->workers.size(), kWorkersShown);
  for (size_t i = 0; i < shown; ++i) {
    const WorkerLoad& load = cost->workers[i];
    absl::StrAppendFormat(&text, "%-8d %18d %14d %12s %12s\n", load.worker, load.work_pairs,
                          load.kv_tokens, Bytes(load.bytes_sent), Bytes(load.bytes_received));
  }
  if (shown < cost->workers.size()) {
    absl::StrAppendFormat(&text, "… and %d more (--json has them all)\n",
                          cost->workers.size() - shown);
  }
  return text;
}

int64_t TokensOf(const ContextInfo& context) {
  return context.tokens.empty() ? 0
                                : *std::max_element(context.tokens.begin(), context.tokens.end());
}

std::string ToText(const ClusterStatus& status) {
  std::string text = absl::StrFormat("epoch %d, %d contexts, %d workers, %d calls in flight (%s)\n",
                                     status.epoch, status.contexts.size(), status.workers.size(),
                                     status.in_flight, Bytes(status.in_flight_bytes));
  absl::StrAppendFormat(&text, "%-8s %-10s %-20s %12s %12s %7s %10s\n", "worker", "state",
                        "backend", "kv", "kv limit", "used", "heartbeat");
  for (const WorkerStatus& worker : status.workers) {
    absl::StrAppendFormat(&text, "%-8d %-10s %-20s %12s %12s %6.1f%% %8.2f s\n", worker.id,
                          worker.state, worker.backend, Bytes(worker.kv_bytes),
                          Bytes(worker.kv_bytes_limit),
                          Percent(worker.kv_bytes, worker.kv_bytes_limit), worker.heartbeat_age_s);
  }
  if (status.contexts.empty()) return text;
  absl::StrAppendFormat(&text, "%-20s %-10s %6s %7s %12s %12s %9s\n", "context", "state", "epoch",
                        "layers", "tokens", "kv", "of dense");
  const size_t shown = std::min(status.contexts.size(), kContextsShown);
  for (size_t i = 0; i < shown; ++i) {
    const ContextInfo& context = status.contexts[i];
    absl::StrAppendFormat(&text, "%-20d %-10s %6d %7d %12d %12s %8.1f%%\n", context.id,
                          context.state, context.epoch, context.tokens.size(), TokensOf(context),
                          Bytes(context.kv_bytes),
                          Percent(context.kv_bytes, context.dense_kv_bytes));
  }
  if (shown < status.contexts.size()) {
    absl::StrAppendFormat(&text, "… and %d more (--json has them all)\n",
                          status.contexts.size() - shown);
  }
  return text;
}

std::string ToText(const VersionReport& report) {
  return absl::StrFormat("annulus %s (%s build), SIMD %s, transports %s, CUDA %s\n", report.version,
                         report.build_type, report.simd, absl::StrJoin(report.transports, " "),
                         report.cuda ? absl::StrCat("yes: ", report.gpu) : "no");
}

}  // namespace annulus
