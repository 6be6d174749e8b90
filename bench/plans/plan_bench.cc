#include "bench/plans/plan_bench.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "base/write_file.h"
#include "bench/plans/check.h"
#include "runtime/cli/files/cluster_file.h"
#include "runtime/engine/calibrate.h"

namespace annulus {
namespace {

absl::StatusOr<Problem> ProblemOf(const BenchFlags& flags, int world) {
  ProblemFlags problem = flags.problem;
  problem.workers = world;
  return MakeProblem(problem);
}

}  // namespace

absl::StatusOr<std::unique_ptr<PlanBench>> PlanBench::Create(Ranks& ranks, const BenchFlags& flags,
                                                             Machinery machinery,
                                                             const Environment& environment,
                                                             bool watched) {
  if (flags.threads > 0) machinery.threads = flags.threads;
  absl::StatusOr<Problem> problem = ProblemOf(flags, ranks.world());
  ANNULUS_RETURN_IF_ERROR(ranks.AllOk(problem.status()));
  absl::StatusOr<std::unique_ptr<Backend>> backend =
      MakeBackend(flags.backend, machinery.threads, machinery.place);
  ANNULUS_RETURN_IF_ERROR(ranks.AllOk(backend.status()));
  std::unique_ptr<PlanBench> bench(
      new PlanBench(ranks, flags, machinery, *std::move(problem), *std::move(backend)));
  bench->watched_ = watched && ranks.rank() == 0;
  ANNULUS_RETURN_IF_ERROR(ranks.UseTransport(flags.transport, flags.ucx_transports));
  ANNULUS_RETURN_IF_ERROR(ranks.AllOk(bench->MakeInputs()));
  ANNULUS_RETURN_IF_ERROR(ranks.AllOk(bench->SetUp(environment)));
  ANNULUS_ASSIGN_OR_RETURN(bench->exchange_, ranks.OpenExchange());
  if (flags.transport == "nccl") ANNULUS_RETURN_IF_ERROR(bench->MeasureGpuLinks());
  ANNULUS_RETURN_IF_ERROR(ranks.AllOk(bench->SaveCluster()));
  return bench;
}

PlanBench::PlanBench(Ranks& ranks, const BenchFlags& flags, Machinery machinery, Problem problem,
                     std::unique_ptr<Backend> backend)
    : ranks_(ranks),
      flags_(flags),
      machinery_(machinery),
      problem_(std::move(problem)),
      backend_(std::move(backend)),
      scale_(1.0f / std::sqrt(static_cast<float>(problem_.head_dim))),
      inputs_(static_cast<uint64_t>(flags.seed)),
      size_(SizeOf(problem_)),
      rows_(problem_.HomeRows(ranks.rank()), problem_.q_range()) {}

absl::Status PlanBench::MakeInputs() {
  ANNULUS_ASSIGN_OR_RETURN(
      q_, MakeQueries(inputs_, problem_, rows_.ranges(), backend_->memory(), machinery_.threads));
  ANNULUS_ASSIGN_OR_RETURN(pages_, MakePages(inputs_, problem_, {0, problem_.kv_heads},
                                             problem_.HeldBlocks(ranks_.rank()), backend_->memory(),
                                             machinery_.threads));
  return absl::OkStatus();
}

// Unlike those of the host's transports, which all ranks share, links between GPUs are measured
// between those that run.
absl::Status PlanBench::MeasureGpuLinks() {
  absl::StatusOr<ClusterModel> measured = MeasureLinks(cluster_, *exchange_, backend_->memory());
  ANNULUS_RETURN_IF_ERROR(ranks_.AllOk(measured.status()));
  cluster_ = *measured;
  return absl::OkStatus();
}

// The figures that plans are weighed with, but the kernels' speed as one rank alone attained it on
// this very problem.
absl::Status PlanBench::SaveCluster() const {
  if (ranks_.rank() != 0 || flags_.save_cluster.empty()) return absl::OkStatus();
  ClusterFile file;
  file.model = cluster_;
  if (single_.seconds > 0) {
    const double flop =
        2.0 * static_cast<double>(size_.work_pairs) * (problem_.head_dim + problem_.v_head_dim);
    (problem_.dtype == DType::kF32 ? file.model.flops_f32 : file.model.flops) =
        flop / single_.seconds;
  }
  return WriteFile(flags_.save_cluster, {ToJson(file)});
}

// What rank 0 alone measures, while the others wait for it without taking its cores.
absl::Status PlanBench::SetUp(const Environment& environment) {
  if (ranks_.rank() != 0) return absl::OkStatus();
  Say("measuring this machine");
  ANNULUS_ASSIGN_OR_RETURN(
      const Machines machines,
      MachinesFor(flags_.machines, flags_.backend, ranks_.world(), environment, std::cerr));
  cluster_ = machines.model;
  Say("one rank alone");
  ANNULUS_ASSIGN_OR_RETURN(single_,
                           MeasureSingle(inputs_, problem_, scale_, *backend_, machinery_.threads,
                                         flags_.single_s, flags_.repeat));
  return absl::OkStatus();
}

// On a terminal: what goes on, over what went on before.
void PlanBench::Say(const std::string& what) const {
  if (watched_) std::cerr << "\33[2K" << what << "\r" << std::flush;
}

// Rank 0 decides, since only it knows the machine; a plan is a pure function of what it says.
absl::StatusOr<Plan> PlanBench::Decide(std::optional<PlanKind> kind, PlanRow* row) {
  std::vector<double> said;
  const auto choose = [&]() -> absl::Status {
    if (ranks_.rank() != 0) return absl::OkStatus();
    ANNULUS_ASSIGN_OR_RETURN(const Decision decision, Choose(problem_, cluster_, kind));
    const Plan& plan = decision.plan;
    said = {static_cast<double>(plan.kind()), static_cast<double>(plan.stages())};
    for (const PlanCost& cost : decision.candidates) {
      if (cost.kind != plan.kind()) continue;
      row->predicted_s = cost.cost_s;
      row->max_over_mean_work = cost.imbalance;
    }
    return absl::OkStatus();
  };
  ANNULUS_RETURN_IF_ERROR(ranks_.AllOk(choose()));
  ANNULUS_ASSIGN_OR_RETURN(const auto all, ranks_.Gather(said));
  return BuildPlan(static_cast<PlanKind>(all[0][0]), problem_, static_cast<int>(all[0][1]));
}

absl::StatusOr<PlanBench::Repetition> PlanBench::RunOnce(const Plan& plan) {
  RankTask task;
  task.plan = &plan;
  task.rank = ranks_.rank();
  task.q = q_.view;
  task.kv = &pages_.table;
  task.scale = scale_;
  Repetition repetition;
  ANNULUS_RETURN_IF_ERROR(ranks_.Barrier());
  const absl::Time begin = absl::Now();
  absl::StatusOr<RankResult> result = RunRank(task, *backend_, *exchange_);
  repetition.seconds = absl::ToDoubleSeconds(absl::Now() - begin);
  if (result.ok() && result->overflow.has_value()) result = OverflowError(*result->overflow);
  ANNULUS_RETURN_IF_ERROR(ranks_.AllOk(result.status()));
  repetition.result = *std::move(result);
  return repetition;
}

absl::StatusOr<PlanRow> PlanBench::Measure(std::optional<PlanKind> kind) {
  PlanRow row;
  ANNULUS_ASSIGN_OR_RETURN(const Plan plan, Decide(kind, &row));
  row.plan = std::string(Name(plan.kind()));
  row.chosen = !kind.has_value();
  row.stages = plan.stages();
  row.planned_bytes = plan.BytesTotal();
  std::vector<Repetition> repetitions;
  for (int i = 0; i <= flags_.repeat; ++i) {
    Say(absl::StrCat(row.plan, ": run ", i + 1, " of ", flags_.repeat + 1));
    ANNULUS_ASSIGN_OR_RETURN(Repetition repetition, RunOnce(plan));
    if (i == 0) continue;  // to warm up
    // Only the last answer is looked at: the others' memory goes.
    if (!repetitions.empty()) repetitions.back().result.home = {};
    repetitions.push_back(std::move(repetition));
  }
  ANNULUS_RETURN_IF_ERROR(AddTimes(plan, repetitions, &row));
  if (flags_.check) {
    Say(absl::StrCat(row.plan, ": checking"));
    ANNULUS_RETURN_IF_ERROR(AddCheck(std::move(repetitions.back().result), &row));
  }
  Say("");
  return row;
}

absl::Status PlanBench::AddTimes(const Plan& plan, const std::vector<Repetition>& repetitions,
                                 PlanRow* row) {
  const size_t rounds = plan.rounds().size();
  std::vector<double> said;
  for (const Repetition& one : repetitions) {
    said.push_back(one.seconds);
    said.push_back(static_cast<double>(one.result.bytes_sent));
    said.push_back(static_cast<double>(one.result.bytes_received));
    said.insert(said.end(), one.result.round_compute_s.begin(), one.result.round_compute_s.end());
  }
  ANNULUS_ASSIGN_OR_RETURN(const auto all, ranks_.Gather(said));

  struct Times {
    double seconds = 0;
    double compute_s = 0;
  };
  std::vector<Times> times;
  for (size_t i = 0; i < repetitions.size(); ++i) {
    const size_t at = i * (3 + rounds);
    Times run;
    row->bytes_sent = 0;
    for (size_t rank = 0; rank < all.size(); ++rank) {
      run.seconds = std::max(run.seconds, all[rank][at]);
      const auto sent = static_cast<int64_t>(all[rank][at + 1]);
      const auto received = static_cast<int64_t>(all[rank][at + 2]);
      row->bytes_sent += sent;
      const int64_t to_send = plan.BytesSent(static_cast<int>(rank));
      const int64_t to_receive = plan.BytesReceived(static_cast<int>(rank));
      if (row->wrong.empty() && (sent != to_send || received != to_receive)) {
        row->wrong = absl::StrCat("rank ", rank, " sent ", sent, " bytes and received ", received,
                                  ", the plan says ", to_send, " and ", to_receive);
      }
    }
    for (size_t step = 0; step < rounds; ++step) {
      double slowest_s = 0;
      for (const auto& rank : all) slowest_s = std::max(slowest_s, rank[at + 3 + step]);
      run.compute_s += slowest_s;
    }
    times.push_back(run);
  }
  const auto middle = times.begin() + static_cast<int64_t>((times.size() - 1) / 2);
  std::nth_element(times.begin(), middle, times.end(),
                   [](const Times& a, const Times& b) { return a.seconds < b.seconds; });
  row->seconds = middle->seconds;
  // Ranks may be a step apart, so that the slowest of each step can add up to more than the run.
  row->exposed_comm_s = std::max(0.0, middle->seconds - middle->compute_s);
  const double world = ranks_.world();
  row->tflops_per_rank = 2e-12 * static_cast<double>(size_.visited_pairs) *
                         (problem_.head_dim + problem_.v_head_dim) / row->seconds / world;
  row->pct_of_single = 100 * single_.seconds / (world * row->seconds);
  return absl::OkStatus();
}

absl::Status PlanBench::AddCheck(RankResult result, PlanRow* row) {
  const uint64_t seed = (static_cast<uint64_t>(flags_.seed) << 20) + ranks_.rank();
  const auto check = [&]() -> absl::StatusOr<CheckResult> {
    ANNULUS_ASSIGN_OR_RETURN(Partial home, ToHost(backend_->memory(), result.home));
    return CheckRows(inputs_, problem_, scale_, rows_.ranges(), home.view(), seed,
                     flags_.check_rows, backend_->memory().kind());
  };
  const absl::StatusOr<CheckResult> mine = check();
  ANNULUS_RETURN_IF_ERROR(ranks_.AllOk(mine.status()));
  ANNULUS_ASSIGN_OR_RETURN(const auto figures,
                           ranks_.Gather({static_cast<double>(mine->rows), mine->max_rel_err}));
  ANNULUS_ASSIGN_OR_RETURN(const std::vector<std::string> wrong,
                           ranks_.Gather(absl::string_view(mine->wrong)));
  for (size_t rank = 0; rank < figures.size(); ++rank) {
    row->checked_rows += static_cast<int64_t>(figures[rank][0]);
    row->max_rel_err = std::max(row->max_rel_err, figures[rank][1]);
    if (row->wrong.empty() && !wrong[rank].empty()) {
      row->wrong = absl::StrCat("rank ", rank, ", ", wrong[rank]);
    }
  }
  return absl::OkStatus();
}

}  // namespace annulus
