#include "bench/plans/options.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/cli/options/shared_options.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

constexpr int kThreadsMax = 4096;
constexpr int kRepeatMax = 1000;
constexpr int kCheckRowsMax = 1 << 20;
constexpr int kSingleSecondsMax = 3600;

OptionSetter SetPlans(std::vector<std::optional<PlanKind>>* plans) {
  return [=](absl::string_view text) -> absl::Status {
    plans->clear();
    for (const absl::string_view name : absl::StrSplit(text, ',')) {
      ANNULUS_ASSIGN_OR_RETURN(const std::optional<PlanKind> kind, ParsePlan(name));
      plans->push_back(kind);
    }
    return absl::OkStatus();
  };
}

absl::StatusOr<std::string> ParseTransport(absl::string_view text) {
  if (text == "mpi" || text == "ucx" || text == "nccl") return std::string(text);
  return absl::InvalidArgumentError(absl::StrCat(Quoted(text), "; expected mpi, ucx or nccl"));
}

void AddProblem(Options* options, ProblemFlags* problem, std::optional<int64_t>* v_head_dim) {
  options->AddRequired("tokens", "N", "tokens of the context",
                       SetCount(&problem->kv_tokens, 1, kContextTokensMax));
  options->Add("q-tokens", "Q", "queries, the context's last (all)",
               SetCount(&problem->q_tokens, 1, kContextTokensMax));
  AddPositions(options, problem);
  options->AddRequired("heads", "H", "query heads", SetCount(&problem->heads, 1, kPlanHeadsMax));
  options->AddRequired("kv-heads", "K", "KV heads", SetCount(&problem->kv_heads, 1, kPlanHeadsMax));
  options->AddRequired("head-dim", "D", "width of q and k",
                       SetCount(&problem->head_dim, 1, kHeadDimMax));
  options->Add("v-head-dim", "D", "width of v (that of k)", SetCount(v_head_dim, 1, kHeadDimMax));
  options->AddFlag("v-is-k-prefix", "V is K's first dims and moves no bytes of its own",
                   &problem->v_is_k_prefix);
  options->AddRequired("pattern", "P", "which keys each query sees, e.g. \"causal\"",
                       SetText(&problem->pattern));
  options->Add("dtype", "f32|f16|bf16", "of q, k and v (bf16)",
               SetParsed(&problem->dtype, ParseDType));
  AddPlacement(options, &problem->placement);
}

}  // namespace

absl::StatusOr<std::optional<std::string>> ParseBenchFlags(const std::vector<std::string>& args,
                                                           const Environment& environment,
                                                           BenchFlags* flags) {
  Options options("", "Plans measured over MPI's ranks: mpirun -np N annulus_bench …",
                  "annulus_bench");
  std::optional<int64_t> v_head_dim;
  options.Add("transport", "mpi|ucx|nccl",
              "how bytes travel between ranks (mpi); nccl: between GPUs, with --backend cuda",
              SetParsed(&flags->transport, ParseTransport));
  options.Add("ucx-transports", "LIST", "with ucx, as UCX_TLS (shm,tcp)",
              SetText(&flags->ucx_transports));
  options.Add("plan", PlanWords("|") + ",…",
              "one or several, separated by commas (auto: the cheapest)", SetPlans(&flags->plans));
  AddProblem(&options, &flags->problem, &v_head_dim);
  options.Add("backend", "auto|cpu|cuda|reference", "what computes (auto)",
              SetText(&flags->backend));
  options.Add("threads", "N", "compute threads of a rank (its share of the cores)",
              SetCount(&flags->threads, 0, kThreadsMax));
  options.Add("repeat", "N", "times each plan runs after a warm-up; the median counts (5)",
              SetCount(&flags->repeat, 1, kRepeatMax));
  options.Add("seed", "N", "of the inputs and of what is checked (1)",
              SetCount(&flags->seed, 0, INT64_MAX));
  options.AddFlag("check", "compare some rows of every rank with a float64 oracle", &flags->check);
  options.Add("check-rows", "N", "rows a rank compares at most (32)",
              SetCount(&flags->check_rows, 1, kCheckRowsMax));
  options.Add("single-s", "S",
              "seconds for the same problem on one rank; of longer ones a sample of query blocks "
              "is timed; 0: none (10)",
              SetCount(&flags->single_s, 0, kSingleSecondsMax));
  AddMachines(&options, &flags->machines);
  options.Add("save-cluster", "F",
              "where the figures measured here go, links included, as --cluster takes them",
              SetText(&flags->save_cluster));
  options.Add("csv", "F", "where the rows go as CSV", SetText(&flags->csv));
  options.AddFlag("json", "a JSON line per plan on stdout", &flags->json);
  ANNULUS_ASSIGN_OR_RETURN(std::optional<std::string> help, options.Parse(args, environment));
  if (help.has_value()) {
    return absl::StrCat(*help,
                        "\n  --kernels first: the kernels of this machine instead; see "
                        "annulus_bench --kernels --help\n");
  }
  ProblemFlags& problem = flags->problem;
  if (problem.q_tokens == 0) problem.q_tokens = problem.kv_tokens;
  problem.v_head_dim = v_head_dim.value_or(problem.head_dim);
  return std::nullopt;
}

}  // namespace annulus
