#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/plans/plan_bench.h"

namespace annulus {
namespace {

std::string Text(absl::string_view text) {
  return std::string(text);
}

}  // namespace

Columns PlanBench::ToColumns(const PlanRow& row) const {
  const bool checked = row.checked_rows > 0;
  const auto of_single = [this](double value) {
    return single_.seconds > 0 ? Columns::Value(value) : Columns::Value();
  };
  const bool works = size_.visited_pairs > 0;
  return {{"plan", row.plan},
          {"pattern", problem_.pattern.text()},
          {"tokens", problem_.q_tokens},
          {"heads", int64_t{problem_.heads}},
          {"kv_heads", int64_t{problem_.kv_heads}},
          {"head_dim", int64_t{problem_.head_dim}},
          {"dtype", Text(Name(problem_.dtype))},
          {"backend", backend_->capabilities().name},
          {"transport", flags_.transport},
          {"world", int64_t{ranks_.world()}},
          {"ms", row.seconds * 1e3},
          {"tflops_per_rank", works ? Columns::Value(row.tflops_per_rank) : Columns::Value()},
          {"pct_of_single", of_single(row.pct_of_single)},
          {"bytes_sent", row.bytes_sent},
          {"planned_bytes", row.planned_bytes},
          {"exposed_comm_ms", row.exposed_comm_s * 1e3},
          {"max_over_mean_work", row.max_over_mean_work},
          {"max_rel_err", checked ? Columns::Value(row.max_rel_err) : Columns::Value()},
          {"checked_rows", row.checked_rows},
          {"oversubscribed", machinery_.oversubscribed},
          {"kv_tokens", problem_.kv_tokens},
          {"v_head_dim", int64_t{problem_.v_head_dim}},
          {"placement", problem_.home_partition.ToString()},
          {"stages", int64_t{row.stages}},
          {"predicted_ms", row.predicted_s * 1e3},
          {"single_ms", of_single(single_.seconds * 1e3)},
          {"single_share", of_single(single_.share)},
          {"visited_pairs", size_.visited_pairs},
          {"nodes", int64_t{machinery_.nodes}},
          {"threads", int64_t{machinery_.threads}},
          {"repeat", int64_t{flags_.repeat}},
          {"seed", flags_.seed},
          {"chosen", row.chosen}};
}

std::string PlanBench::TextHeader() const {
  const std::string single =
      single_.seconds == 0
          ? "not measured"
          : absl::StrFormat("%.4g ms%s", single_.seconds * 1e3,
                            single_.share < 1
                                ? absl::StrFormat(" (from %.2g%% of the work)", single_.share * 100)
                                : "");
  return absl::StrFormat(
      "%s: %d queries on %d tokens, %d/%d heads, d %d, %s; %d ranks over %s, %s; one rank alone: "
      "%s\n"
      "%-22s %10s %10s %10s %8s %14s %14s %8s %9s %6s\n",
      problem_.pattern.text(), problem_.q_tokens, problem_.kv_tokens, problem_.heads,
      problem_.kv_heads, problem_.head_dim, Text(Name(problem_.dtype)), ranks_.world(),
      flags_.transport, backend_->capabilities().detail, single, "plan", "ms", "exposed", "GFLOP/s",
      "of one", "bytes sent", "planned", "max/mean", "error", "rows");
}

std::string PlanBench::ToText(const PlanRow& row) const {
  const std::string rate =
      size_.visited_pairs > 0 ? absl::StrFormat("%.2f", row.tflops_per_rank * 1e3) : "-";
  return absl::StrFormat("%-22s %10.3f %10.3f %10s %8s %14d %14d %8.3f %9s %6d\n",
                         absl::StrCat(row.plan, row.chosen ? " (auto)" : ""), row.seconds * 1e3,
                         row.exposed_comm_s * 1e3, rate,
                         single_.seconds > 0 ? absl::StrFormat("%.1f%%", row.pct_of_single) : "-",
                         row.bytes_sent, row.planned_bytes, row.max_over_mean_work,
                         row.checked_rows > 0 ? absl::StrFormat("%.1e", row.max_rel_err) : "-",
                         row.checked_rows);
}

}  // namespace annulus
