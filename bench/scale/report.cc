#include "bench/scale/report.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_format.h"

namespace annulus {
namespace {

std::string Text(absl::string_view text) {
  return std::string(text);
}

Columns::Value Known(std::optional<double> value) {
  return value.has_value() ? Columns::Value(*value) : Columns::Value();
}

std::string Percent(std::optional<double> share) {
  return share.has_value() ? absl::StrFormat("%.1f%%", *share * 100) : "-";
}

// Where there is none it may come out below nothing by a rounding.
double OverheadOf(const ScaleRow& row) {
  return std::max(0.0, row.split.compute_s - row.work_s);
}

std::string NameOf(Scaling scaling) {
  return scaling == Scaling::kWeak ? "weak" : "strong";
}

}  // namespace

Columns ToColumns(const ScaleRow& row) {
  const TimeSplit& split = row.split;
  double waiting_s = 0, idle_s = 0;
  for (const RankTime& rank : split.run.ranks) {
    waiting_s += rank.waiting_s / row.world;
    idle_s += rank.idle_s / row.world;
  }
  const Scenario& scenario = row.series.scenario;
  return {{"scenario", scenario.name},
          {"scaling", NameOf(row.series.scaling)},
          {"series_tokens", row.series.tokens},
          {"plan", Text(Name(scenario.plan))},
          {"pattern", scenario.pattern},
          {"tokens", scenario.decode ? int64_t{1} : row.tokens},
          {"kv_tokens", row.tokens},
          {"tokens_per_rank", row.tokens / row.world},
          {"heads", int64_t{row.shape.heads}},
          {"kv_heads", int64_t{row.shape.kv_heads}},
          {"head_dim", int64_t{row.shape.head_dim}},
          {"dtype", Text(Name(row.shape.dtype))},
          {"world", int64_t{row.world}},
          {"ms", split.run.seconds * 1e3},
          {"work_ms", row.work_s * 1e3},
          {"overhead_ms", OverheadOf(row) * 1e3},
          {"compute_ms", split.compute_s * 1e3},
          {"imbalance_ms", split.imbalance_s * 1e3},
          {"bandwidth_ms", split.bandwidth_s * 1e3},
          {"latency_ms", split.latency_s * 1e3},
          {"exposed_comm_ms", (split.bandwidth_s + split.latency_s) * 1e3},
          {"waiting_ms", waiting_s * 1e3},
          {"idle_ms", idle_s * 1e3},
          {"efficiency", Known(row.efficiency)},
          {"efficiency_to_first", Known(row.efficiency_to_first)},
          {"tflops_per_rank", Known(row.tflops_per_rank)},
          {"messages", row.messages},
          {"bytes_sent", row.bytes_sent},
          {"max_over_mean_work", row.max_over_mean_work}};
}

std::string TextHeader(const Series& series) {
  const Scenario& scenario = series.scenario;
  return absl::StrFormat(
      "%s: plan %s, %s, %s scaling, %d tokens %s\n"
      "%6s %10s %10s %10s %10s %10s %10s %8s %8s %8s %8s\n",
      scenario.name, Text(Name(scenario.plan)), scenario.pattern, NameOf(series.scaling),
      series.tokens, series.scaling == Scaling::kWeak ? "a rank" : "in all", "ranks", "ms", "work",
      "overhead", "imbalance", "bandwidth", "latency", "of limit", "of first", "max/mean",
      "TFLOP/s");
}

std::string ToText(const ScaleRow& row) {
  const TimeSplit& split = row.split;
  return absl::StrFormat(
      "%6d %10.3f %10.3f %10.3f %10.3f %10.3f %10.3f %8s %8s %8.3f %8s\n", row.world,
      split.run.seconds * 1e3, row.work_s * 1e3, OverheadOf(row) * 1e3, split.imbalance_s * 1e3,
      split.bandwidth_s * 1e3, split.latency_s * 1e3, Percent(row.efficiency),
      Percent(row.efficiency_to_first), row.max_over_mean_work,
      row.tflops_per_rank.has_value() ? absl::StrFormat("%.1f", *row.tflops_per_rank) : "-");
}

}  // namespace annulus
