// annulus_scale: the plans that annulus runs, played on a cluster that is not there. The ranks do
// what the engine would have them do, message for message; computing and links take as long as the
// calibration file says (runtime/cli/files/cluster_file.h: the file of `annulus explain
// --cluster`).
//   annulus_scale --cluster bench/scale/h200.json --csv scale.csv
//   annulus_scale --cluster F --pattern causal --tokens 128K --ranks 2,4,8
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/quoted.h"
#include "base/status.h"
#include "base/write_file.h"
#include "bench/scale/report.h"
#include "bench/scale/scenario.h"
#include "bench/scale/script.h"
#include "runtime/cli/files/cluster_file.h"
#include "runtime/cli/options/options.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

struct Flags {
  std::string cluster;
  std::vector<int64_t> ranks = {8, 16, 32, 64, 128, 256, 512, 1024};
  std::vector<int64_t> tokens_per_rank = {32 << 10, 8 << 10};
  int64_t tokens = 1 << 20;
  std::vector<Scenario> scenarios = Scenarios();
  std::string pattern;
  std::vector<PlanKind> plans = {PlanKind::kRing, PlanKind::kHeads, PlanKind::kMesh,
                                 PlanKind::kGroupCast};
  Shape shape;
  std::string csv;
  bool json = false;
};

OptionSetter SetCounts(std::vector<int64_t>* values, int64_t high) {
  return [=](absl::string_view text) -> absl::Status {
    values->clear();
    for (absl::string_view item : absl::StrSplit(text, ',')) {
      ANNULUS_ASSIGN_OR_RETURN(const int64_t value, ParseCount(item, 1, high));
      values->push_back(value);
    }
    return absl::OkStatus();
  };
}

OptionSetter SetScenarios(std::vector<Scenario>* chosen) {
  return [=](absl::string_view text) -> absl::Status {
    chosen->clear();
    for (absl::string_view item : absl::StrSplit(text, ',')) {
      std::string names;
      bool found = false;
      for (const Scenario& scenario : Scenarios()) {
        absl::StrAppend(&names, names.empty() ? "" : ", ", scenario.name);
        if (item != scenario.name) continue;
        chosen->push_back(scenario);
        found = true;
      }
      if (!found) {
        return absl::InvalidArgumentError(absl::StrCat(Quoted(item), "; expected some of ", names));
      }
    }
    return absl::OkStatus();
  };
}

OptionSetter SetPlans(std::vector<PlanKind>* plans) {
  return [=](absl::string_view text) -> absl::Status {
    plans->clear();
    for (absl::string_view name : absl::StrSplit(text, ',')) {
      ANNULUS_ASSIGN_OR_RETURN(const PlanKind kind, ParsePlanKind(name));
      plans->push_back(kind);
    }
    return absl::OkStatus();
  };
}

Options OptionsOf(Flags* flags) {
  Options options("", "How plans scale over ranks of a cluster, by simulation.", "annulus_scale");
  options.AddRequired("cluster", "F", "the machines, a JSON file", SetText(&flags->cluster));
  options.Add("ranks", "N,…", "numbers of ranks (8,16,…,1024)",
              SetCounts(&flags->ranks, kScriptRanksMax));
  options.Add("tokens-per-rank", "N,…", "of weak scaling (32K,8K)",
              SetCounts(&flags->tokens_per_rank, kContextTokensMax));
  options.Add("tokens", "N", "in all, of strong scaling (1M)",
              SetCount(&flags->tokens, 1, kContextTokensMax));
  options.Add("scenarios", "S,…", "which (all)", SetScenarios(&flags->scenarios));
  options.Add("pattern", "P", "this one under the plans of --plan, strong, in place of scenarios",
              SetText(&flags->pattern));
  options.Add("plan", "P,…", "with --pattern: which (ring,heads,mesh,group-cast)",
              SetPlans(&flags->plans));
  options.Add("heads", "H", "query heads (32)", SetCount(&flags->shape.heads, 1, 1 << 16));
  options.Add("kv-heads", "K", "KV heads (8)", SetCount(&flags->shape.kv_heads, 1, 1 << 16));
  options.Add("head-dim", "D", "width of q, k and v (128)",
              SetCount(&flags->shape.head_dim, 1, 1 << 16));
  options.Add("dtype", "f32|f16|bf16", "of q, k and v (bf16)",
              SetParsed(&flags->shape.dtype, ParseDType));
  options.Add("csv", "F", "where the rows go as CSV", SetText(&flags->csv));
  options.AddFlag("json", "a JSON line per row on stdout, no table", &flags->json);
  options.Need("plan", "pattern");
  options.Exclude("pattern", "scenarios");
  options.Exclude("pattern", "tokens-per-rank");
  return options;
}

std::vector<Series> SeriesOf(const Flags& flags) {
  std::vector<Series> all;
  if (!flags.pattern.empty()) {
    for (PlanKind kind : flags.plans) {
      const Scenario scenario = {std::string(Name(kind)), kind, flags.pattern, /*decode=*/false,
                                 kStagesOfPlanner};
      all.push_back({scenario, Scaling::kStrong, flags.tokens});
    }
    return all;
  }
  for (const Scenario& scenario : flags.scenarios) {
    for (int64_t tokens : flags.tokens_per_rank) {
      all.push_back({scenario, Scaling::kWeak, tokens});
    }
    all.push_back({scenario, Scaling::kStrong, flags.tokens});
  }
  return all;
}

absl::Status Run(const std::vector<std::string>& args) {
  Flags flags;
  const Environment environment = [](const std::string& name) { return std::getenv(name.c_str()); };
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           OptionsOf(&flags).Parse(args, environment));
  if (help.has_value()) {
    std::cout << *help;
    return absl::OkStatus();
  }
  ANNULUS_ASSIGN_OR_RETURN(const ClusterFile cluster, FindCluster(flags.cluster));
  for (int64_t ranks : flags.ranks) {
    if (ranks > cluster.workers_max) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--ranks: ", ranks, "; expected at most the cluster's ", cluster.workers_max));
    }
  }
  if (!flags.csv.empty()) {
    ANNULUS_RETURN_IF_ERROR(CheckOutputs({{"--csv", flags.csv}}, {{"--cluster", flags.cluster}}));
  }

  const bool watched = isatty(STDERR_FILENO) == 1;
  std::string csv;
  for (const Series& series : SeriesOf(flags)) {
    std::string header = flags.json ? "" : TextHeader(series);
    std::optional<double> first;
    for (int64_t ranks : flags.ranks) {
      if (watched) std::cerr << series.scenario.name << ", " << ranks << " ranks\r" << std::flush;
      const int world = static_cast<int>(ranks);
      ANNULUS_ASSIGN_OR_RETURN(const ClusterModel model, ModelFor(cluster, world));
      ANNULUS_ASSIGN_OR_RETURN(ScaleRow row, Play(series, flags.shape, world, model));
      if (watched) std::cerr << "\33[2K" << std::flush;  // clears the line
      if (!first.has_value()) first = row.efficiency;
      if (row.efficiency.has_value()) row.efficiency_to_first = *row.efficiency / *first;
      const Columns columns = ToColumns(row);
      // The heading waits for a row: a shape that makes no sense is refused before it.
      std::cout << std::exchange(header, "") << (flags.json ? columns.JsonLine() : ToText(row))
                << std::flush;
      csv += (csv.empty() ? columns.CsvHeader() : "") + columns.CsvLine();
      // A row is in the file at once: the program may be ended before its last one.
      if (!flags.csv.empty()) ANNULUS_RETURN_IF_ERROR(WriteFile(flags.csv, {csv}));
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace annulus

int main(int argc, char** argv) {
  const absl::Status status = annulus::Run(std::vector<std::string>(argv + 1, argv + argc));
  if (status.ok()) return 0;
  std::cerr << "annulus_scale: " << status.message() << std::endl;
  return absl::IsInvalidArgument(status) ? 2 : 1;
}
