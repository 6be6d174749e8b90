#include "bench/plans/plans.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/quoted.h"
#include "base/status.h"
#include "base/write_file.h"
#include "bench/plans/plan_bench.h"

namespace annulus {
namespace {

// The options that all ranks must have alike, as each has them.
using OptionValues = std::vector<std::pair<const char*, std::string>>;

OptionValues SharedOptions(const BenchFlags& flags, bool help) {
  const ProblemFlags& problem = flags.problem;
  std::vector<std::string> plans;
  for (const auto& kind : flags.plans) {
    plans.emplace_back(kind.has_value() ? Name(*kind) : "auto");
  }
  return {
      {"help", help ? "true" : "false"},  // the first: a rank that helps has read no others
      {"transport", flags.transport},
      {"ucx-transports", flags.ucx_transports},
      {"plan", absl::StrJoin(plans, ",")},
      {"tokens", absl::StrCat(problem.kv_tokens)},
      {"q-tokens", absl::StrCat(problem.q_tokens)},
      {"q-start", problem.q_start.has_value() ? absl::StrCat(*problem.q_start) : "none"},
      {"keys", problem.keys.has_value() ? absl::StrCat(problem.keys->begin, ":", problem.keys->end)
                                        : "all"},
      {"heads", absl::StrCat(problem.heads)},
      {"kv-heads", absl::StrCat(problem.kv_heads)},
      {"head-dim", absl::StrCat(problem.head_dim)},
      {"v-head-dim", absl::StrCat(problem.v_head_dim)},
      {"v-is-k-prefix", problem.v_is_k_prefix ? "true" : "false"},
      {"pattern", problem.pattern},
      {"dtype", std::string(Name(problem.dtype))},
      {"placement", problem.placement.ToString()},
      {"backend", flags.backend},
      {"repeat", absl::StrCat(flags.repeat)},
      {"seed", absl::StrCat(flags.seed)},
      {"check", flags.check ? "true" : "false"},
      {"check-rows", absl::StrCat(flags.check_rows)}};
}

// Ranks that were asked for different things would wait for each other for ever: a launcher hands
// variables on to the ranks of its own machine only.
absl::Status CheckAlike(Ranks& ranks, const BenchFlags& flags, bool help) {
  constexpr char kEnd = '\0';  // no argument has one
  const OptionValues options = SharedOptions(flags, help);
  std::string mine;
  for (const auto& [name, value] : options) mine.append(value).push_back(kEnd);
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<std::string> all, ranks.Gather(mine));
  const std::vector<absl::string_view> first = absl::StrSplit(all[0], kEnd);
  for (size_t rank = 1; rank < all.size(); ++rank) {
    const std::vector<absl::string_view> values = absl::StrSplit(all[rank], kEnd);
    const size_t at =
        std::mismatch(values.begin(), values.end(), first.begin()).first - values.begin();
    if (at == values.size()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--", options[at].first, ": ", Quoted(values[at], 80), " on rank ", rank,
                     "; expected ", Quoted(first[at], 80), ", as rank 0 has it"));
  }
  return absl::OkStatus();
}

// What rank 0 says and writes; the others are silent.
class Speaker {
 public:
  Speaker(const Ranks& ranks, const BenchFlags& flags) : flags_(flags), on_(ranks.rank() == 0) {}

  void Begin(const PlanBench& bench, const Ranks& ranks, const Machinery& machinery) {
    if (!on_) return;
    if (machinery.oversubscribed) {
      std::cerr << "annulus_bench: " << ranks.world() << " ranks on " << machinery.nodes
                << (machinery.nodes == 1 ? " node" : " nodes")
                << " are more than the cores there: times mean nothing, results and bytes count\n";
    }
    if (!flags_.json) std::cerr << bench.TextHeader() << std::flush;
  }

  // A row is in the file at once: a job may be ended before its last one.
  absl::Status Add(const PlanBench& bench, const PlanRow& row) {
    if (!on_) return absl::OkStatus();
    const Columns columns = bench.ToColumns(row);
    csv_ += (csv_.empty() ? columns.CsvHeader() : "") + columns.CsvLine();
    if (flags_.json) {
      std::cout << columns.JsonLine() << std::flush;
    } else {
      std::cerr << bench.ToText(row) << std::flush;
    }
    return flags_.csv.empty() ? absl::OkStatus() : WriteFile(flags_.csv, {csv_});
  }

 private:
  const BenchFlags& flags_;
  const bool on_;
  std::string csv_;
};

// Rank 0 writes them.
absl::Status CheckFiles(const BenchFlags& flags) {
  std::vector<NamedPath> inputs, outputs;
  AddFiles(flags.machines, &inputs);
  if (!flags.csv.empty()) outputs.push_back({"--csv", flags.csv});
  if (!flags.save_cluster.empty()) outputs.push_back({"--save-cluster", flags.save_cluster});
  return CheckOutputs(outputs, inputs);
}

absl::Status MeasurePlans(Ranks& ranks, const BenchFlags& flags, const Environment& environment) {
  ANNULUS_RETURN_IF_ERROR(ranks.AllOk(ranks.rank() == 0 ? CheckFiles(flags) : absl::OkStatus()));
  ANNULUS_ASSIGN_OR_RETURN(const Machinery machinery, ranks.Look());
  ANNULUS_ASSIGN_OR_RETURN(
      const std::unique_ptr<PlanBench> bench,
      PlanBench::Create(ranks, flags, machinery, environment, isatty(STDERR_FILENO) == 1));
  Speaker speaker(ranks, flags);
  speaker.Begin(*bench, ranks, machinery);
  std::string wrong;
  for (const std::optional<PlanKind>& kind : flags.plans) {
    ANNULUS_ASSIGN_OR_RETURN(const PlanRow row, bench->Measure(kind));
    ANNULUS_RETURN_IF_ERROR(ranks.AllOk(speaker.Add(*bench, row)));
    if (wrong.empty() && !row.wrong.empty())
      wrong = absl::StrCat("plan ", row.plan, ": ", row.wrong);
  }
  return wrong.empty() ? absl::OkStatus() : absl::DataLossError(wrong);
}

absl::Status Run(Ranks& ranks, const std::vector<std::string>& args) {
  const Environment environment = [](const std::string& name) { return std::getenv(name.c_str()); };
  BenchFlags flags;
  const absl::StatusOr<std::optional<std::string>> help =
      ParseBenchFlags(args, environment, &flags);
  ANNULUS_RETURN_IF_ERROR(ranks.AllOk(help.status()));
  ANNULUS_RETURN_IF_ERROR(CheckAlike(ranks, flags, help->has_value()));
  if (help->has_value()) {
    if (ranks.rank() == 0) std::cout << **help;
    return absl::OkStatus();
  }
  return MeasurePlans(ranks, flags, environment);
}

}  // namespace

int RunPlans(const std::vector<std::string>& args) {
  const absl::StatusOr<std::unique_ptr<Ranks>> ranks = Ranks::Start();
  if (!ranks.ok()) {
    std::cerr << "annulus_bench: " << ranks.status().message() << std::endl;
    return 1;
  }
  const absl::Status status = Run(**ranks, args);
  if (status.ok()) return 0;
  // All ranks have learnt of it.
  if ((*ranks)->rank() == 0) std::cerr << "annulus_bench: " << status.message() << std::endl;
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace annulus
