// Plans measured over the ranks of a job. Collective: all ranks make the same calls. One thread.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/backend.h"
#include "bench/plans/inputs.h"
#include "bench/plans/options.h"
#include "bench/plans/ranks.h"
#include "bench/plans/single.h"
#include "bench/report/columns.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/rows.h"
#include "sharding/planner.h"

namespace annulus {

// One measured plan; whole on rank 0 only.
struct PlanRow {
  std::string plan;
  bool chosen = false;  // by the planner: --plan auto
  int stages = 0;
  double seconds = 0;          // the median repetition, of its slowest rank
  double exposed_comm_s = 0;   // of that repetition: seconds − what the slowest rank of each step
                               // computed, step by step
  double predicted_s = 0;      // by the cost model
  double tflops_per_rank = 0;  // 2·visited_pairs·(head_dim + v_head_dim) / seconds / world
  double pct_of_single = 0;    // 100 · one rank's time / (world · seconds)
  int64_t bytes_sent = 0;      // counted at the transport, over all ranks
  int64_t planned_bytes = 0;
  double max_over_mean_work = 1;
  int64_t checked_rows = 0;
  double max_rel_err = 0;  // of the checked rows
  std::string wrong;       // what must not be: bytes beside the plan's, a wrong row; or empty
};

class PlanBench {
 public:
  // `machines` is looked at on rank 0 only, which decides for all.
  static absl::StatusOr<std::unique_ptr<PlanBench>> Create(Ranks& ranks, const BenchFlags& flags,
                                                           Machinery machinery,
                                                           const Environment& environment,
                                                           bool watched);

  absl::StatusOr<PlanRow> Measure(std::optional<PlanKind> kind);

  Columns ToColumns(const PlanRow& row) const;
  std::string TextHeader() const;
  std::string ToText(const PlanRow& row) const;

 private:
  // What one rank says of one repetition.
  struct Repetition {
    double seconds = 0;
    RankResult result;
  };

  PlanBench(Ranks& ranks, const BenchFlags& flags, Machinery machinery, Problem problem,
            std::unique_ptr<Backend> backend);
  absl::Status MakeInputs();
  absl::Status MeasureGpuLinks();
  absl::Status SaveCluster() const;
  absl::Status SetUp(const Environment& environment);
  absl::StatusOr<Plan> Decide(std::optional<PlanKind> kind, PlanRow* row);
  absl::StatusOr<Repetition> RunOnce(const Plan& plan);
  absl::Status AddTimes(const Plan& plan, const std::vector<Repetition>& repetitions, PlanRow* row);
  absl::Status AddCheck(RankResult result, PlanRow* row);
  void Say(const std::string& what) const;

  Ranks& ranks_;
  const BenchFlags& flags_;
  const Machinery machinery_;
  const Problem problem_;
  const std::unique_ptr<Backend> backend_;
  const float scale_;
  const Inputs inputs_;
  const ProblemSize size_;
  const Rows rows_;  // at home here
  InputQueries q_;
  InputPages pages_;
  std::unique_ptr<Exchange> exchange_;
  ClusterModel cluster_;  // rank 0's
  SingleTime single_;     // rank 0's
  bool watched_ = false;
};

}  // namespace annulus
