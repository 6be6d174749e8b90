#include "bench/plans/plans.h"

#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/write_file.h"
#include "bench/plans/plan_bench.h"

namespace annulus {
namespace {

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

  void Add(const PlanBench& bench, const PlanRow& row) {
    if (!on_) return;
    const Columns columns = bench.ToColumns(row);
    csv_ += (csv_.empty() ? columns.CsvHeader() : "") + columns.CsvLine();
    if (flags_.json) {
      std::cout << columns.JsonLine() << std::flush;
    } else {
      std::cerr << bench.ToText(row) << std::flush;
    }
  }

  absl::Status End() const {
    if (!on_ || flags_.csv.empty()) return absl::OkStatus();
    return WriteFile(flags_.csv, {csv_});
  }

 private:
  const BenchFlags& flags_;
  const bool on_;
  std::string csv_;
};

absl::Status MeasurePlans(Ranks& ranks, const BenchFlags& flags, const Environment& environment) {
  std::vector<NamedPath> inputs;
  AddFiles(flags.machines, &inputs);
  ANNULUS_RETURN_IF_ERROR(ranks.AllOk(ranks.rank() == 0 && !flags.csv.empty()
                                          ? CheckOutputs({{"--csv", flags.csv}}, inputs)
                                          : absl::OkStatus()));
  ANNULUS_ASSIGN_OR_RETURN(const Machinery machinery, ranks.Look());
  ANNULUS_ASSIGN_OR_RETURN(
      const std::unique_ptr<PlanBench> bench,
      PlanBench::Create(ranks, flags, machinery, environment, isatty(STDERR_FILENO) == 1));
  Speaker speaker(ranks, flags);
  speaker.Begin(*bench, ranks, machinery);
  std::string wrong;
  for (const std::optional<PlanKind>& kind : flags.plans) {
    ANNULUS_ASSIGN_OR_RETURN(const PlanRow row, bench->Measure(kind));
    speaker.Add(*bench, row);
    if (wrong.empty() && !row.wrong.empty())
      wrong = absl::StrCat("plan ", row.plan, ": ", row.wrong);
  }
  ANNULUS_RETURN_IF_ERROR(ranks.AllOk(speaker.End()));
  return wrong.empty() ? absl::OkStatus() : absl::DataLossError(wrong);
}

absl::Status Run(Ranks& ranks, const std::vector<std::string>& args) {
  const Environment environment = [](const std::string& name) { return std::getenv(name.c_str()); };
  BenchFlags flags;
  const absl::StatusOr<std::optional<std::string>> help =
      ParseBenchFlags(args, environment, &flags);
  ANNULUS_RETURN_IF_ERROR(ranks.AllOk(help.status()));
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
