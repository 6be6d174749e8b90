#include "runtime/cli/demo/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/cli/report/table.h"

namespace annulus {
namespace {

// Inputs are exact in bf16 and sums are f32. A kernel may round the weights of the values to bf16,
// by 2⁻⁹ each and depending on how the keys are cut, but not those that make up lse, whose error is
// that of f32 scores.
constexpr double kOutErrorMax = 4e-3;
constexpr double kLseErrorMax = 1e-4;
constexpr double kPlansDifferenceMax = 4e-3;

std::string WorkShares(const std::vector<int64_t>& work_pairs) {
  const double all =
      static_cast<double>(std::accumulate(work_pairs.begin(), work_pairs.end(), int64_t{0}));
  std::string text;
  for (const int64_t pairs : work_pairs) {
    absl::StrAppendFormat(&text, "%s%.1f", text.empty() ? "" : " ",
                          all > 0 ? 100 * static_cast<double>(pairs) / all : 0.0);
  }
  return text;
}

std::string PhasesText(const std::vector<DemoPhase>& phases) {
  using Align = Table::Align;
  Table table({{"", Align::kLeft},
               {"pattern", Align::kLeft},
               {"plan", Align::kLeft},
               {"found/visible"},
               {"worst error"},
               {"tokens/s"},
               {"GB/s (of it)"},
               {"moved B"},
               {"planned B"},
               {"work per worker %", Align::kLeft}});
  for (const DemoPhase& phase : phases) {
    table.AddRow(
        {phase.name, phase.pattern, phase.plan,
         absl::StrCat(phase.recall.found, " / ", phase.recall.visible),
         absl::StrFormat("%.1e", phase.out_error),
         absl::StrFormat("%.1f", static_cast<double>(phase.queries) / phase.elapsed_s),
         phase.kv_bytes_per_s > 0
             ? absl::StrFormat("%.2f (%.0f%%)", 1e-9 * phase.kv_bytes_per_s, 100 * phase.read_share)
             : "-",
         absl::StrCat(phase.bytes_moved), absl::StrCat(phase.planned_bytes),
         WorkShares(phase.work_pairs)});
  }
  return table.ToText();
}

// What the KV's bandwidth is held against.
std::string BandwidthText(const DemoReport& report) {
  const double gb_per_s = 1e-9 * report.read_bytes_per_s;
  if (report.gpus == 0) {
    return absl::StrFormat(
        "machine   reads %.2f GB/s (the median of reads between the decode steps)", gb_per_s);
  }
  return absl::StrFormat(
      "machine   %d GPU%s read and write %.2f GB/s (the median of copies between the decode steps)",
      report.gpus, report.gpus == 1 ? "" : "s", gb_per_s);
}

nlohmann::ordered_json PhaseJson(const DemoPhase& phase) {
  return {{"phase", phase.name},
          {"pattern", phase.pattern},
          {"plan", phase.plan},
          {"requests", phase.requests},
          {"queries", phase.queries},
          {"asked", phase.recall.asked},
          {"visible", phase.recall.visible},
          {"found", phase.recall.found},
          {"stray", phase.recall.stray},
          {"keys_seen", phase.recall.keys_seen},
          {"rows_checked", phase.rows_checked},
          {"max_rel_err", phase.out_error},
          {"max_lse_err", phase.lse_error},
          {"elapsed_s", phase.elapsed_s},
          {"tokens_per_s", static_cast<double>(phase.queries) / phase.elapsed_s},
          {"kv_bytes_per_s", phase.kv_bytes_per_s},
          {"pct_of_read_bandwidth", 100 * phase.read_share},
          {"bytes_moved", phase.bytes_moved},
          {"planned_bytes", phase.planned_bytes},
          {"work_pairs", phase.work_pairs}};
}

}  // namespace

void Judge(DemoReport* report) {
  const auto fail = [&](const DemoPhase& phase, const std::string& what) {
    report->failures.push_back(
        absl::StrCat(phase.name, " ", phase.pattern, " ", phase.plan, ": ", what));
  };
  for (const DemoPhase& phase : report->phases) {
    const Recall& recall = phase.recall;
    if (recall.found != recall.visible) {
      fail(phase, absl::StrCat(recall.visible - recall.found, " visible values not found"));
    }
    if (recall.stray != 0) fail(phase, absl::StrCat(recall.stray, " hidden values came back"));
    if (phase.name == "decode" && recall.keys_seen != kDemoAssociations) {
      fail(phase, absl::StrCat("planted keys seen by some head: ", recall.keys_seen, "; expected ",
                               kDemoAssociations));
    }
    // Written so that NaN fails.
    if (!(phase.out_error <= kOutErrorMax)) {
      fail(phase, absl::StrFormat("error of out: %.1e; expected at most %.0e", phase.out_error,
                                  kOutErrorMax));
    }
    if (!(phase.lse_error <= kLseErrorMax)) {
      fail(phase, absl::StrFormat("error of lse: %.1e; expected at most %.0e", phase.lse_error,
                                  kLseErrorMax));
    }
    if (phase.bytes_moved != phase.planned_bytes) {
      fail(phase, absl::StrCat("bytes moved: ", phase.bytes_moved, "; expected the planned ",
                               phase.planned_bytes));
    }
  }
  if (!(report->plans_difference <= kPlansDifferenceMax)) {
    report->failures.push_back(
        absl::StrFormat("difference of two plans: %.1e; expected at most %.0e",
                        report->plans_difference, kPlansDifferenceMax));
  }
}

std::string ToText(const DemoReport& report) {
  std::string text = absl::StrFormat(
      "\ncontext   %d tokens, %d heads over %d, d %d, bf16: %.2f GiB on %d workers, %s\n"
      "uploaded  in %.1f s, %.0f MB/s\n"
      "%s\n"
      "coverage  the KV heads together see %.2f%% of the context under S2\n"
      "plans     the chunk's answers differ by %.1e\n\n%s",
      report.tokens, kDemoHeads, kDemoKvHeads, kDemoDim,
      static_cast<double>(report.kv_bytes) / (1 << 30), report.workers, report.backend,
      report.upload_s, 1e-6 * static_cast<double>(report.kv_bytes) / report.upload_s,
      BandwidthText(report), 100 * report.covered, report.plans_difference,
      PhasesText(report.phases));
  absl::StrAppendFormat(&text, "\nblock map %s\ntrace     %s (open it in ui.perfetto.dev)\n%s\n",
                        report.block_map_path, report.trace_path,
                        report.failures.empty()
                            ? absl::StrFormat("all as it must be, in %.1f s", report.elapsed_s)
                            : absl::StrCat("FAILED: ", report.failures.size(), " findings"));
  return text;
}

std::string ToJson(const DemoReport& report) {
  nlohmann::ordered_json phases = nlohmann::ordered_json::array();
  for (const DemoPhase& phase : report.phases) phases.push_back(PhaseJson(phase));
  const nlohmann::ordered_json json = {{"tokens", report.tokens},
                                       {"workers", report.workers},
                                       {"gpus", report.gpus},
                                       {"backend", report.backend},
                                       {"seed", report.seed},
                                       {"kv_bytes", report.kv_bytes},
                                       {"upload_s", report.upload_s},
                                       {"read_bytes_per_s", report.read_bytes_per_s},
                                       {"covered", report.covered},
                                       {"plans_difference", report.plans_difference},
                                       {"phases", phases},
                                       {"block_map", report.block_map_path},
                                       {"trace", report.trace_path},
                                       {"elapsed_s", report.elapsed_s},
                                       {"failures", report.failures}};
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace annulus
