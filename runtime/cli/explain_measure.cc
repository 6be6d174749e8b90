#include "runtime/cli/explain_measure.h"

#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/engine/local_ranks.h"
#include "runtime/engine/random_tensor.h"

namespace annulus {
namespace {

constexpr uint64_t kSeed = 1;

absl::Status CheckSize(const Problem& problem) {
  const int64_t row_bytes = static_cast<int64_t>(SizeOf(problem.dtype)) *
                            (problem.kv_heads * (problem.head_dim + problem.v_head_dim));
  const int64_t q_bytes = static_cast<int64_t>(SizeOf(problem.dtype)) * problem.heads *
                          (problem.head_dim + problem.v_head_dim);
  // In long double: at kContextTokensMax tokens the product does not fit 64 bits.
  const long double bytes = 2.0L * (static_cast<long double>(problem.kv_tokens) * row_bytes +
                                    static_cast<long double>(problem.q_tokens) * q_bytes);
  if (bytes <= static_cast<long double>(kMeasuredBytesMax)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--measure: ", static_cast<double>(bytes),
                                                 " bytes for the tensors; expected at most ",
                                                 kMeasuredBytesMax, ": take fewer tokens"));
}

absl::StatusOr<MeasuredPlan> RunPlan(const Plan& plan, const Tensor& q, const Tensor& k,
                                     const Tensor& v, Backend& backend) {
  ANNULUS_ASSIGN_OR_RETURN(const LocalRanks ranks,
                           LocalRanks::Create(plan, q.view(), k.view(), v.view(), backend));
  const float scale = 1.0f / std::sqrt(static_cast<float>(plan.problem().head_dim));
  MeasuredPlan measured;
  for (const bool warm_up : {true, false}) {
    const absl::Time begin = absl::Now();
    ANNULUS_ASSIGN_OR_RETURN(const LocalRun run, ranks.Run(scale));
    if (warm_up) continue;
    measured = {absl::ToDoubleSeconds(absl::Now() - begin), run.compute_s, run.wait_s,
                run.bytes_moved};
  }
  return measured;
}

}  // namespace

absl::StatusOr<std::vector<MeasuredPlan>> Measure(const Decision& decision, const Problem& problem,
                                                  const ClusterModel& model) {
  ANNULUS_RETURN_IF_ERROR(CheckSize(problem));
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend("auto", 0));
  Rng rng(kSeed);
  const Tensor q =
      RandomTensor(rng, problem.dtype, problem.q_tokens, problem.heads, problem.head_dim);
  const Tensor k =
      RandomTensor(rng, problem.dtype, problem.kv_tokens, problem.kv_heads, problem.head_dim);
  Tensor v;
  if (!problem.v_is_k_prefix) {
    v = RandomTensor(rng, problem.dtype, problem.kv_tokens, problem.kv_heads, problem.v_head_dim);
  }
  std::vector<MeasuredPlan> measured;
  for (const PlanCost& candidate : decision.candidates) {
    ANNULUS_ASSIGN_OR_RETURN(const Decision one, Choose(problem, model, candidate.kind));
    ANNULUS_ASSIGN_OR_RETURN(const MeasuredPlan plan, RunPlan(one.plan, q, k, v, *backend));
    measured.push_back(plan);
  }
  return measured;
}

}  // namespace annulus
