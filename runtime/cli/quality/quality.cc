// `annulus quality`: patterns beside dense attention, by what they leave out and what they save.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "attention/backend.h"
#include "base/quoted.h"
#include "base/status.h"
#include "base/write_file.h"
#include "runtime/cli/commands.h"
#include "runtime/cli/files/tensor_file.h"
#include "runtime/cli/options/shared_options.h"
#include "runtime/cli/problem.h"
#include "runtime/cli/quality/report.h"
#include "runtime/cli/report/progress.h"
#include "runtime/context/check_tensor.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

constexpr int64_t kTokensMin = 1024;
constexpr int64_t kTokensMax = int64_t{1} << 22;
constexpr int kDepthsMax = 100;

struct Tasks {
  bool mass = false;
  bool needle = false;
  bool mqar = false;

  int count() const { return mass + needle + mqar; }
};

struct QualityFlags {
  Tasks tasks = {true, true, true};
  std::vector<Comparison> rows;  // none: DefaultRows
  std::string dense = "causal";
  std::optional<std::string> q, k, v;  // files of captured tensors
  TaskShape shape = {16 << 10, 8, 4, 64, DType::kF32};
  std::optional<DType> dtype;
  int64_t q_tokens = 1024;
  int depths = 10;
  int repeat = 3;
  int64_t seed = 1;
  std::string backend = "auto";
  std::optional<std::string> csv;
  bool json = false;
};

absl::StatusOr<Tasks> ParseTasks(absl::string_view text) {
  Tasks tasks;
  for (const absl::string_view name : absl::StrSplit(text, ',')) {
    bool* const task = name == "mass"     ? &tasks.mass
                       : name == "needle" ? &tasks.needle
                       : name == "mqar"   ? &tasks.mqar
                                          : nullptr;
    if (task == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(Quoted(name), "; expected mass, needle and mqar, with commas between them"));
    }
    *task = true;
  }
  return tasks;
}

Options OptionsOf(QualityFlags* flags) {
  Options options("quality",
                  "Patterns beside dense attention: the weights they keep, the error, what they "
                  "find, time and bytes.");
  options.Add("task", "mass,needle,mqar",
              "mass: of rows like a language model's; needle: words at all depths that the last "
              "query asks for; mqar: multi-query associative recall (all)",
              SetParsed(&flags->tasks, ParseTasks));
  options.AddRepeated("pattern", "P",
                      "a pattern to measure; may be given again (methods of the literature)",
                      [flags](absl::string_view text) {
                        flags->rows.push_back({.pattern = std::string(text)});
                        return absl::OkStatus();
                      });
  options.AddRepeated("compress", "RULE",
                      "a context to measure that Compress makes smaller, snapkv(KEEP) or "
                      "h2o(KEEP), for steps after it; may be given again",
                      [flags](absl::string_view text) -> absl::Status {
                        ANNULUS_ASSIGN_OR_RETURN(Compression made, ParseCompression(text));
                        Comparison row{.pattern = made.text};
                        row.compression = std::move(made);
                        flags->rows.push_back(std::move(row));
                        return absl::OkStatus();
                      });
  options.Add("dense", "P", "what it is held against (causal)", SetText(&flags->dense));
  options.Add("q", "F",
              "captured queries [tokens, heads, d], the context's last, for the mass "
              "task alone: F.npy or F.safetensors:name",
              SetText(&flags->q));
  options.Add("k", "F", "captured keys [kv_tokens, kv_heads, d]", SetText(&flags->k));
  options.Add("v", "F", "captured values [kv_tokens, kv_heads, d_v]", SetText(&flags->v));
  options.Add("tokens", "N", "tokens of a made-up context (16K)",
              SetCount(&flags->shape.tokens, kTokensMin, kTokensMax));
  options.Add("q-tokens", "N", "its last queries, which the mass task is about (1K)",
              SetCount(&flags->q_tokens, 1, kTokensMax));
  options.Add("heads", "H", "its query heads (8)", SetCount(&flags->shape.heads, 1, 1024));
  options.Add("kv-heads", "K", "its KV heads (4)", SetCount(&flags->shape.kv_heads, 1, 1024));
  options.Add("head-dim", "D", "width of its q, k and v (64)",
              SetCount(&flags->shape.head_dim, 8, kHeadDimMax));
  options.Add("dtype", "f32|f16|bf16", "of q, k and v (f32, or the files')",
              SetParsed(&flags->dtype, ParseDType));
  options.Add("depths", "N", "needles (10)", SetCount(&flags->depths, 1, kDepthsMax));
  options.Add("repeat", "N", "runs of each time that is taken; the fastest counts (3)",
              SetCount(&flags->repeat, 1, 1000));
  options.Add("seed", "N", "of what is made up (1)", SetCount(&flags->seed, 0, INT64_MAX));
  options.Add("backend", "auto|cpu|cuda|reference", "what computes (auto)",
              SetText(&flags->backend));
  options.Add("csv", "F", "where the rows go as CSV", SetText(&flags->csv));
  options.AddFlag("json", "one JSON line for each pattern on stdout", &flags->json);
  for (const char* const file : {"q", "k", "v"}) {
    for (const char* const made_up :
         {"tokens", "q-tokens", "heads", "kv-heads", "head-dim", "task", "depths", "seed"}) {
      options.Exclude(file, made_up);
    }
  }
  return options;
}

// Methods of the literature for text, in sizes that fit the context: windows of a sixteenth of it,
// and as many keys kept.
std::vector<std::string> DefaultPatterns(int64_t tokens, int kv_heads) {
  const int64_t window = std::max<int64_t>(64, tokens / 16 / 64 * 64);
  const int64_t block = std::max<int64_t>(64, tokens / 32 / 64 * 64);
  std::vector<std::string> patterns = {
      "causal",
      absl::StrCat("causal & window(", window, ")"),
      absl::StrCat("causal & (sink(4) | window(", window, "))"),
      absl::StrCat("s2(64,", std::max<int64_t>(1, window / 256), ",", std::max(2, kv_heads), ")"),
      absl::StrCat("power(64,", std::max<int64_t>(1, window / 256), ",1)"),
      absl::StrCat("causal & (sink(4) | window(64) | quest(", window, ",16))"),
      absl::StrCat("moba(", block, ",3)"),
      absl::StrCat("nsa(", std::max<int64_t>(2, window / 64), ")"),
      "xattention(0.9)",
      absl::StrCat("causal & biformer(", block, ",3)"),
      absl::StrCat("minference(", window / 2, ",", window / 2, ")"),
      "flexprefill(0.9)"};
  if (kv_heads < 3) return patterns;
  const int retrieval = kv_heads / 2;
  patterns.push_back(absl::StrCat("heads(0-", retrieval - 1, ": causal; ", retrieval, "-",
                                  kv_heads - 1, ": causal & (sink(64) | window(256)))"));
  patterns.push_back(absl::StrCat("s2(64,", std::max<int64_t>(1, window / 256), ",", kv_heads - 1,
                                  ",dense_heads=1)"));
  return patterns;
}

std::vector<Comparison> DefaultRows(const TaskShape& shape) {
  std::vector<Comparison> rows;
  for (std::string& pattern : DefaultPatterns(shape.tokens, shape.kv_heads)) {
    rows.push_back({.pattern = std::move(pattern)});
  }
  for (const char* const rule : {"snapkv", "h2o"}) {
    const std::string text = absl::StrCat(rule, "(", std::max<int64_t>(64, shape.tokens / 16), ")");
    rows.push_back({.pattern = text, .compression = *ParseCompression(text)});
  }
  return rows;
}

// Captured tensors, from files.
struct Captured {
  FileTensor q, k, v;

  AttentionInputs inputs() const { return {q.view(), k.view(), v.view()}; }
};

absl::Status CheckCaptured(const AttentionInputs& inputs) {
  const auto& [q, k, v] = inputs;
  ANNULUS_RETURN_IF_ERROR(CheckValuesFit(k, v));
  ANNULUS_RETURN_IF_ERROR(CheckTensor("q", q, q.heads, k.dim, q.dtype));
  ANNULUS_RETURN_IF_ERROR(CheckTensor("k", k, k.heads, k.dim, q.dtype));
  return CheckTensor("v", v, k.heads, v.dim, q.dtype);
}

// Nothing where no file is named.
absl::StatusOr<std::optional<Captured>> ReadCaptured(const QualityFlags& flags) {
  const auto named = {std::pair("q", &flags.q), {"k", &flags.k}, {"v", &flags.v}};
  if (!flags.q.has_value() && !flags.k.has_value() && !flags.v.has_value()) return std::nullopt;
  for (const auto& [name, file] : named) {
    if (file->has_value()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--", name, ": none; expected F, as --q, --k and --v go together"));
  }
  ANNULUS_ASSIGN_OR_RETURN(FileTensor q, FileTensor::Read(*flags.q));
  ANNULUS_ASSIGN_OR_RETURN(FileTensor k, FileTensor::Read(*flags.k));
  ANNULUS_ASSIGN_OR_RETURN(FileTensor v, FileTensor::Read(*flags.v));
  Captured captured{std::move(q), std::move(k), std::move(v)};
  const auto& [q_view, k_view, v_view] = captured.inputs();
  ANNULUS_ASSIGN_OR_RETURN(const DType dtype, CommonDType(flags.dtype, {{q_view, k_view, v_view}}));
  for (FileTensor* tensor : {&captured.q, &captured.k, &captured.v}) tensor->RoundTo(dtype);
  ANNULUS_RETURN_IF_ERROR(CheckCaptured(captured.inputs()));
  return captured;
}

// The rows of all that is compared, task by task, so that the inputs of one are there at a time.
absl::Status Measure(const QualityFlags& flags, const std::optional<Captured>& captured,
                     const Console& console, std::vector<QualityRow>* rows) {
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                           MakeBackend(flags.backend, /*threads=*/0));
  const auto seed = static_cast<uint64_t>(flags.seed);
  Progress progress(console, "quality");
  int64_t done = 0;
  const int64_t all = flags.tasks.count() * static_cast<int64_t>(rows->size());
  const auto each = [&](auto measure) -> absl::Status {
    for (size_t i = 0; i < rows->size(); ++i) {
      ANNULUS_RETURN_IF_ERROR(measure(flags.rows[i], (*rows)[i]));
      progress.Show(++done, all);
    }
    return absl::OkStatus();
  };
  if (flags.tasks.mass) {
    MassTask task;
    if (!captured.has_value()) task = MakeMassTask(flags.shape, flags.q_tokens, seed);
    const AttentionInputs inputs =
        captured.has_value() ? captured->inputs() : AttentionInputs{task.q, task.kv.k, task.kv.v};
    ANNULUS_RETURN_IF_ERROR(each([&](const Comparison& of, QualityRow& row) -> absl::Status {
      ANNULUS_ASSIGN_OR_RETURN(row.mass, MeasureMass(of, inputs, *backend));
      return absl::OkStatus();
    }));
  }
  for (const bool needle : {true, false}) {
    if (!(needle ? flags.tasks.needle : flags.tasks.mqar)) continue;
    const RecallTask task =
        needle ? MakeNeedleTask(flags.shape, flags.depths, seed) : MakeMqarTask(flags.shape, seed);
    ANNULUS_RETURN_IF_ERROR(each([&](const Comparison& of, QualityRow& row) -> absl::Status {
      // Queries of MQAR stand among the keys: a context that is made of all has seen the answers.
      if (of.compression.has_value() && !needle) return absl::OkStatus();
      ANNULUS_ASSIGN_OR_RETURN((needle ? row.needle : row.mqar),
                               MeasureRecall(of, task, seed, *backend));
      return absl::OkStatus();
    }));
  }
  return absl::OkStatus();
}

// What the flags say together.
absl::Status CheckFlags(QualityFlags* flags) {
  TaskShape& shape = flags->shape;
  shape.dtype = flags->dtype.value_or(shape.dtype);
  if (shape.heads % shape.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("heads: ", shape.heads, "; expected a multiple ",
                                                   "of kv_heads ", shape.kv_heads));
  }
  if (flags->q_tokens > shape.tokens) {
    return absl::InvalidArgumentError(absl::StrCat("q-tokens: ", flags->q_tokens,
                                                   "; expected 1 to the ", shape.tokens,
                                                   " of the context: they are its last"));
  }
  return CheckOutputs({{"--csv", flags->csv}},
                      {{"--q", flags->q}, {"--k", flags->k}, {"--v", flags->v}});
}

}  // namespace

absl::Status RunQuality(const Arguments& args, const Console& console) {
  QualityFlags flags;
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<std::string> help,
                           OptionsOf(&flags).Parse(args, console.environment));
  if (help.has_value()) {
    *console.out << *help;
    return absl::OkStatus();
  }
  ANNULUS_RETURN_IF_ERROR(CheckFlags(&flags));
  ANNULUS_ASSIGN_OR_RETURN(const std::optional<Captured> captured, ReadCaptured(flags));
  if (captured.has_value()) {
    flags.tasks = {.mass = true, .needle = false, .mqar = false};
    flags.shape.tokens = captured->k.view().tokens;
    flags.shape.kv_heads = static_cast<int>(captured->k.view().heads);
  }
  if (flags.rows.empty()) flags.rows = DefaultRows(flags.shape);
  std::vector<QualityRow> rows;
  for (Comparison& row : flags.rows) {
    row.dense = flags.dense;
    row.repeat = flags.repeat;
    rows.push_back({.pattern = row.pattern});
  }
  ANNULUS_RETURN_IF_ERROR(Measure(flags, captured, console, &rows));
  if (flags.csv.has_value()) ANNULUS_RETURN_IF_ERROR(WriteFile(*flags.csv, {QualityCsv(rows)}));
  *console.out << (flags.json ? QualityJson(rows) : QualityText(rows)) << std::flush;
  return absl::OkStatus();
}

}  // namespace annulus
