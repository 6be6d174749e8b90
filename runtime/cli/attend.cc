#include "runtime/cli/attend.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "attention/finish.h"
#include "base/quoted.h"
#include "base/status.h"
#include "base/write_file.h"
#include "runtime/cli/options/security_options.h"
#include "runtime/cli/options/shared_options.h"
#include "runtime/context/check_tensor.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

constexpr int kRepeatMax = 1 << 20;

absl::StatusOr<Upload> ParseUpload(absl::string_view text) {
  if (text == "direct") return Upload::kDirect;
  if (text == "relay") return Upload::kRelay;
  return absl::InvalidArgumentError(absl::StrCat(Quoted(text), "; expected direct or relay"));
}

absl::StatusOr<std::vector<float>> ParseSinks(absl::string_view text) {
  std::vector<float> sinks;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    if (!absl::SimpleAtof(part, &sinks.emplace_back())) {
      return absl::InvalidArgumentError(
          absl::StrCat(Quoted(part), "; expected numbers with commas between them"));
    }
  }
  return sinks;
}

Options OptionsOf(AttendFlags* flags) {
  Options options("attend", "Attention over tensors in files.");
  options.AddRequired("q", "F", "queries [tokens, heads, d]: F.npy or F.safetensors:name",
                      SetText(&flags->q));
  options.AddRequired("k", "F", "keys [kv_tokens, kv_heads, d]", SetText(&flags->k));
  options.Add("v", "F", "values [kv_tokens, kv_heads, d_v]", SetText(&flags->v));
  options.Add("v-head-dim", "N", "without --v: V is K's first N dims",
              SetCount(&flags->v_head_dim, 1, kHeadDimMax));
  options.AddRequired("out", "F", "where out [tokens, heads, d_v] goes, .npy, f32",
                      SetText(&flags->out));
  options.Add("lse", "F", "where lse [tokens, heads] goes, .npy, f32, natural log",
              SetText(&flags->lse));
  options.AddRequired("pattern", "P", "which keys each query sees, e.g. \"causal\"",
                      SetText(&flags->pattern));
  AddPositions(&options, &flags->positions);
  AddLists(&options, &flags->positions);
  options.Add("workers", "N", "compute with N workers in this process (1)",
              SetCount(&flags->workers, 1, kPlanWorkersMax));
  options.Add("endpoint", "HOST:PORT", "compute in the service there",
              SetParsed(&flags->endpoint, ParseEndpoint));
  options.Exclude("workers", "endpoint");
  AddPlan(&options, &flags->plan);
  AddPlacement(&options, &flags->placement);
  options.Add("kv-placement", "tokens|heads|mesh", "with --endpoint: how KV is sharded (tokens)",
              SetParsed(&flags->kv_placement, ParsePlacement));
  options.Add("upload", "direct|relay",
              "with --endpoint: KV goes to the workers, or through the "
              "service (direct)",
              SetParsed(&flags->upload, ParseUpload));
  AddClientSecurity(&options, &flags->security);
  options.Add("scale", "S", "scores are S q·k (1/sqrt(d))", SetFloat(&flags->scale));
  options.Add("sinks", "S,S,…",
              "a score for each head that takes a share of its weight and brings no value; -inf: "
              "none (no head has one)",
              SetParsed(&flags->sinks, ParseSinks));
  options.Add("dtype", "f32|f16|bf16", "what q, k, v are rounded to (the files', which must agree)",
              SetParsed(&flags->dtype, ParseDType));
  options.Add("backend", "auto|cpu|cuda|reference", "what computes (auto)",
              SetText(&flags->backend));
  options.Exclude("backend", "endpoint");
  options.Add("repeat", "N", "attend N times, report the median time (1)",
              SetCount(&flags->repeat, 1, kRepeatMax));
  AddMachines(&options, &flags->machines);
  for (const char* here : {"cluster", "calibration"}) options.Exclude(here, "endpoint");
  for (const char* there :
       {"kv-placement", "upload", "tls-ca", "tls-cert", "tls-key", "token-file"}) {
    options.Need(there, "endpoint");
  }
  options.AddFlag("json", "one JSON line on stdout", &flags->json);
  return options;
}

// The width of V, and that it fits K.
absl::StatusOr<int64_t> VHeadDim(const AttendFlags& flags, const AttendInputs& inputs) {
  const TensorView& k = inputs.k.view();
  if (!inputs.v.has_value()) {
    if (flags.v_head_dim.has_value() && *flags.v_head_dim <= k.dim) return *flags.v_head_dim;
    return absl::InvalidArgumentError(
        flags.v_head_dim.has_value()
            ? absl::StrCat("--v-head-dim: ", *flags.v_head_dim, "; expected at most k's d ", k.dim)
            : "--v: none; expected F, or --v-head-dim N for V as K's first N dims");
  }
  const TensorView v = inputs.v_view();
  ANNULUS_RETURN_IF_ERROR(CheckValuesFit(k, v));
  if (flags.v_head_dim.has_value() && *flags.v_head_dim != v.dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("--v-head-dim: ", *flags.v_head_dim, "; expected v's ", v.dim));
  }
  return v.dim;
}

// Whatever cannot be written, or would overwrite what is read, is refused before any work.
absl::Status CheckFiles(const AttendFlags& flags) {
  ANNULUS_RETURN_IF_ERROR(CheckNpyName(flags.out));
  if (flags.lse.has_value()) ANNULUS_RETURN_IF_ERROR(CheckNpyName(*flags.lse));
  std::vector<NamedPath> inputs = {{"--q", FileTensor::PathOf(flags.q)},
                                   {"--k", FileTensor::PathOf(flags.k)}};
  if (flags.v.has_value()) inputs.push_back({"--v", FileTensor::PathOf(*flags.v)});
  for (const ListFile& list : flags.positions.list_files) inputs.push_back({"--list", list.path});
  AddFiles(flags.machines, &inputs);
  return CheckOutputs({{"--out", flags.out}, {"--lse", flags.lse}}, inputs);
}

absl::Status WriteOutcome(const AttendFlags& flags, const AttendOutcome& outcome) {
  const auto values = [](const Tensor& tensor) {
    return absl::MakeConstSpan(tensor.f32(), static_cast<size_t>(tensor.view().size()));
  };
  const Tensor& out = outcome.out;
  ANNULUS_RETURN_IF_ERROR(WriteNpy(flags.out, {out.tokens(), out.heads(), out.dim()}, values(out)));
  if (!flags.lse.has_value()) return absl::OkStatus();
  return WriteNpy(*flags.lse, {out.tokens(), out.heads()}, values(outcome.lse));
}

}  // namespace

absl::StatusOr<AttendInputs> ReadAttendInputs(const AttendFlags& flags) {
  ANNULUS_ASSIGN_OR_RETURN(FileTensor q, FileTensor::Read(flags.q));
  ANNULUS_ASSIGN_OR_RETURN(FileTensor k, FileTensor::Read(flags.k));
  AttendInputs inputs{std::move(q), std::move(k), {}, {}, 0};
  if (flags.v.has_value()) {
    ANNULUS_ASSIGN_OR_RETURN(inputs.v, FileTensor::Read(*flags.v));
  }
  ProblemFlags& problem = inputs.problem;
  ANNULUS_ASSIGN_OR_RETURN(
      problem.dtype,
      CommonDType(flags.dtype, {{inputs.q.view(), inputs.k.view(), inputs.v_view()}}));
  ANNULUS_ASSIGN_OR_RETURN(problem.v_head_dim, VHeadDim(flags, inputs));
  const TensorView q_view = inputs.q.view();
  const TensorView k_view = inputs.k.view();
  problem.q_tokens = q_view.tokens;
  problem.q_start = flags.positions.q_start;
  problem.kv_tokens = k_view.tokens;
  problem.keys = flags.positions.keys;
  problem.heads = q_view.heads;
  problem.kv_heads = k_view.heads;
  problem.head_dim = k_view.dim;
  problem.v_is_k_prefix = !inputs.v.has_value();
  problem.workers = flags.workers;
  problem.placement = flags.placement;
  problem.pattern = flags.pattern;
  problem.list_files = flags.positions.list_files;
  ANNULUS_RETURN_IF_ERROR(CheckSinks(flags.sinks, problem.heads));
  ANNULUS_RETURN_IF_ERROR(ReadLists(&problem));
  // Everything cheap is checked before the values are read.
  ANNULUS_RETURN_IF_ERROR(CheckBeforeSelection(problem));
  for (const auto& [name, view] :
       {std::pair("q", q_view), std::pair("k", k_view), std::pair("v", inputs.v_view())}) {
    if (view.data == nullptr) continue;
    const int64_t dim = *name == 'v' ? problem.v_head_dim : problem.head_dim;
    ANNULUS_RETURN_IF_ERROR(CheckTensor(name, view, view.heads, dim, problem.dtype));
  }
  inputs.scale = flags.scale.value_or(1.0f / std::sqrt(static_cast<float>(problem.head_dim)));
  return inputs;
}

AttendReport ReportOf(const AttendFlags& flags, const AttendInputs& inputs) {
  const ProblemFlags& problem = inputs.problem;
  AttendReport report;
  report.pattern = flags.pattern;
  report.tokens = problem.q_tokens;
  report.q_start = problem.q_start.value_or(problem.kv_tokens - problem.q_tokens);
  report.kv_tokens = problem.kv_tokens;
  report.keys = problem.keys.value_or(TokenRange{0, problem.kv_tokens});
  report.heads = static_cast<int>(problem.heads);
  report.kv_heads = static_cast<int>(problem.kv_heads);
  report.head_dim = static_cast<int>(problem.head_dim);
  report.v_head_dim = static_cast<int>(problem.v_head_dim);
  report.dtype = problem.dtype;
  return report;
}

double MedianOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

absl::Status RunAttend(const Arguments& args, const Console& console) {
  AttendFlags flags;
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           OptionsOf(&flags).Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  ANNULUS_RETURN_IF_ERROR(CheckFiles(flags));
  ANNULUS_ASSIGN_OR_RETURN(AttendInputs inputs, ReadAttendInputs(flags));
  ANNULUS_ASSIGN_OR_RETURN(const AttendOutcome outcome,
                           flags.endpoint.has_value()
                               ? AttendRemotely(flags, inputs, console)
                               : AttendLocally(flags, std::move(inputs), console));
  ANNULUS_RETURN_IF_ERROR(WriteOutcome(flags, outcome));
  if (flags.json) {
    *console.out << ToJson(outcome.report) << std::flush;
  } else {
    *console.err << ToText(outcome.report) << std::flush;
  }
  return absl::OkStatus();
}

}  // namespace annulus
