#include "runtime/cli/quality/measure.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "attention/selector.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/cli/problem.h"
#include "runtime/cli/quality/beyond.h"
#include "runtime/cli/relative_difference.h"
#include "runtime/engine/local_ranks.h"
#include "sharding/planner.h"
#include "sharding/work.h"

namespace annulus {
namespace {

struct Answer {
  Tensor out;  // f32 [q_tokens, heads, head_dim]
  Tensor lse;  // f32 [q_tokens, heads, 1]
};

// A pattern over inputs, which must outlive it.
class Contender {
 public:
  // Chooses keys where the pattern's words do, and plans.
  static absl::StatusOr<Contender> Make(const std::string& text, const AttentionInputs& inputs,
                                        Backend& backend) {
    const auto& [q, k, v] = inputs;
    ProblemFlags flags{.q_tokens = q.tokens,
                       .kv_tokens = k.tokens,
                       .heads = q.heads,
                       .kv_heads = k.heads,
                       .head_dim = q.dim,
                       .v_head_dim = v.dim,
                       .dtype = q.dtype,
                       .placement = {},
                       .pattern = text};
    const absl::Time begin = absl::Now();
    ANNULUS_RETURN_IF_ERROR(SelectLists(q, k, /*scale=*/0, backend, &flags));
    const absl::Duration selection = absl::Now() - begin;
    ANNULUS_ASSIGN_OR_RETURN(const Problem problem, MakeProblem(flags));
    ANNULUS_ASSIGN_OR_RETURN(Plan made, BuildPlan(PlanKind::kRing, problem));
    auto plan = std::make_unique<const Plan>(std::move(made));
    ANNULUS_ASSIGN_OR_RETURN(LocalRanks ranks, LocalRanks::Create(*plan, q, k, v, backend));
    return Contender(problem, std::move(plan), std::move(ranks), selection);
  }

  const Pattern& pattern() const { return problem_.pattern; }  // with its lists
  TokenRange queries() const { return problem_.q_range(); }
  int64_t tokens() const { return problem_.kv_tokens; }
  int64_t pairs() const { return SizeOf(problem_).visited_pairs; }

  // Of keys that some query of the last block sees, for each KV head, whole blocks of them.
  int64_t tokens_read() const {
    const int64_t end = problem_.kv_tokens;
    const TokenRange last{
        std::max((end - 1) / kBlockTokens * kBlockTokens, end - problem_.q_tokens), end};
    int64_t tokens = 0;
    std::vector<TileRun> seen;
    for (int head = 0; head < problem_.kv_heads; ++head) {
      pattern().Row(head, last, end, &seen);
      for (const TileRun& run : seen) tokens += BlockSet::FromRuns({run.blocks}).TokenCount(end);
    }
    return tokens;
  }

  absl::Status Run() {
    const absl::Time begin = absl::Now();
    const float scale = 1 / std::sqrt(static_cast<float>(problem_.head_dim));
    ANNULUS_ASSIGN_OR_RETURN(LocalRun run, ranks_.Run(scale));
    fastest_ = std::min(fastest_, absl::Now() - begin);
    answer_.lse = std::move(run.result).TakeLse();
    answer_.out = std::move(run.result).TakeOut();
    return absl::OkStatus();
  }

  const Answer& answer() const { return answer_; }
  // Of selection and the fastest run.
  double elapsed_s() const { return absl::ToDoubleSeconds(selection_ + fastest_); }

 private:
  Contender(const Problem& problem, std::unique_ptr<const Plan> plan, LocalRanks ranks,
            absl::Duration selection)
      : problem_(problem),
        plan_(std::move(plan)),
        ranks_(std::move(ranks)),
        selection_(selection) {}

  Problem problem_;
  std::unique_ptr<const Plan> plan_;  // that ranks_ refers to
  LocalRanks ranks_;
  absl::Duration selection_;
  absl::Duration fastest_ = absl::InfiniteDuration();
  Answer answer_;
};

bool Sees(const Pattern& pattern, int64_t q, int64_t key) {
  for (int member = 0; member < pattern.members(); ++member) {
    for (int head = 0; head < pattern.kv_heads(); ++head) {
      if (pattern.Member(member).Allows(head, q, key)) return true;
    }
  }
  return false;
}

// The values of all words, one dim after the other.
std::vector<float> AllWords(int head_dim, uint64_t seed) {
  std::vector<float> by_dim(static_cast<size_t>(head_dim) * kWords);
  for (int word = 0; word < kWords; ++word) {
    const std::vector<float> value = WordValue(word, head_dim, seed);
    for (size_t i = 0; i < value.size(); ++i)
      by_dim[i * kWords + static_cast<size_t>(word)] = value[i];
  }
  return by_dim;
}

// The word whose value is nearest to the sum of the heads' answers.
int NearestWord(const Tensor& out, int64_t row, const std::vector<float>& words) {
  const auto dim = static_cast<size_t>(out.dim());
  std::vector<float> products(kWords);
  for (size_t i = 0; i < dim; ++i) {
    float sum = 0;
    for (int64_t head = 0; head < out.heads(); ++head) {
      sum += out.f32()[static_cast<size_t>((row * out.heads() + head) * out.dim()) + i];
    }
    for (size_t word = 0; word < kWords; ++word) products[word] += sum * words[i * kWords + word];
  }
  return static_cast<int>(std::max_element(products.begin(), products.end()) - products.begin());
}

// INVALID_ARGUMENT where a query has nothing that others could be held against.
absl::Status CheckDense(const std::string& pattern, const Answer& dense) {
  const int64_t heads = dense.lse.heads();
  for (int64_t row = 0; row < dense.lse.view().size(); ++row) {
    if (dense.lse.f32()[row] != -std::numeric_limits<float>::infinity()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("dense: ", Quoted(pattern), " shows row ", row / heads, " of head ",
                     row % heads, " no key; expected a pattern that shows each query some"));
  }
  return absl::OkStatus();
}

// INVALID_ARGUMENT where what is compared sees what dense attention does not: it has no share of
// that. Compress may keep any key of its prompt.
absl::Status CheckWithin(const Comparison& comparison, const Contender& dense,
                         const Contender& sparse) {
  const bool compresses = comparison.compression.has_value();
  ANNULUS_ASSIGN_OR_RETURN(const Pattern causal,
                           Pattern::Parse("causal", dense.pattern().kv_heads()));
  const std::optional<Pair> beyond = PairBeyond(compresses ? causal : sparse.pattern(),
                                                dense.pattern(), dense.queries(), dense.tokens());
  if (!beyond.has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(compresses ? "compress: " : "pattern: ", Quoted(comparison.pattern),
                   compresses ? " may show" : " shows", " query ", beyond->query, " of KV head ",
                   beyond->kv_head, " key ", beyond->key, "; expected none that dense ",
                   Quoted(comparison.dense), " does not show"));
}

// Of dense attention's weights, those that the answer has; mean over rows and heads.
double MassOf(const Answer& answer, const Answer& dense) {
  double mass = 0;
  const int64_t rows = answer.lse.view().size();
  for (int64_t row = 0; row < rows; ++row) {
    mass += std::exp(answer.lse.f32()[row] - dense.lse.f32()[row]);
  }
  return mass / static_cast<double>(rows);
}

// Both run in turn, so that both have the same share of a machine that does other things too.
absl::Status RunBoth(const Comparison& comparison, Contender& dense, Contender& sparse) {
  for (int i = 0; i < comparison.repeat; ++i) {
    ANNULUS_RETURN_IF_ERROR(dense.Run());
    if (i == 0) {
      ANNULUS_RETURN_IF_ERROR(CheckDense(comparison.dense, dense.answer()));
      ANNULUS_RETURN_IF_ERROR(CheckWithin(comparison, dense, sparse));
    }
    ANNULUS_RETURN_IF_ERROR(sparse.Run());
  }
  return absl::OkStatus();
}

// What both have answered, of all queries.
void CompareAnswers(const Contender& dense, const Contender& sparse, MassFigures* figures) {
  figures->density = static_cast<double>(sparse.pairs()) / static_cast<double>(dense.pairs());
  figures->mass = MassOf(sparse.answer(), dense.answer());
  figures->error = RelativeDifference(sparse.answer().out, dense.answer().out);
}

// The same of the last query.
void CompareSteps(const Contender& dense, const Contender& sparse, MassFigures* figures) {
  figures->decode_bytes =
      static_cast<double>(sparse.tokens_read()) / static_cast<double>(dense.tokens_read());
  figures->decode_speed = dense.elapsed_s() / sparse.elapsed_s();
}

absl::StatusOr<MassFigures> MeasureCompression(const Comparison& comparison,
                                               const AttentionInputs& inputs, Backend& backend) {
  const auto& [q, k, v] = inputs;
  if (q.tokens < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens of q: ", q.tokens, "; expected 2 or more for ",
                     comparison.compression->text, ", some to vote and some to attend"));
  }
  const int64_t steps = std::min(kStepsAfterCompress, q.tokens / 2);
  const int64_t prompt = k.tokens - steps;
  const absl::Time begin = absl::Now();
  ANNULUS_ASSIGN_OR_RETURN(const CompressedRows rows,
                           Compressed(*comparison.compression, q.Tokens(0, q.tokens - steps),
                                      k.Tokens(0, prompt), v.Tokens(0, prompt), backend));
  const double compress_s = absl::ToDoubleSeconds(absl::Now() - begin);
  const Tensor small_k = Joined(rows.k, k.Tokens(prompt, steps));
  const Tensor small_v = Joined(rows.v, v.Tokens(prompt, steps));
  MassFigures figures;
  figures.kept = rows.k.tokens();
  for (const int64_t asked : {steps, int64_t{1}}) {
    const TensorView last = q.Tokens(q.tokens - asked, asked);
    ANNULUS_ASSIGN_OR_RETURN(Contender dense,
                             Contender::Make(comparison.dense, {last, k, v}, backend));
    ANNULUS_ASSIGN_OR_RETURN(Contender small,
                             Contender::Make("causal", {last, small_k, small_v}, backend));
    ANNULUS_RETURN_IF_ERROR(RunBoth(comparison, dense, small));
    if (asked == steps) CompareAnswers(dense, small, &figures);
    if (asked > 1) continue;
    CompareSteps(dense, small, &figures);
    figures.compress_steps = compress_s / dense.elapsed_s();
  }
  return figures;
}

// Whether the words of a pattern choose for the last queries of `keys`, of a step or of a prompt.
absl::StatusOr<bool> ChoosesFor(const std::string& text, const TensorView& keys, int64_t queries,
                                bool step) {
  ANNULUS_ASSIGN_OR_RETURN(const Pattern pattern,
                           Pattern::Parse(text, static_cast<int>(keys.heads)));
  const auto& words = pattern.selectors();
  return std::all_of(words.begin(), words.end(), [&](const auto& word) {
    return word->ChoosesFor({keys.tokens - queries, keys.tokens}, keys.tokens, step);
  });
}

// Whether some KV head has kept it.
bool Kept(const KeyListData& kept, int64_t key) {
  for (int head = 0; head < kept.heads; ++head) {
    const auto from = kept.keys.begin() + kept.begin[head];
    const auto to = kept.keys.begin() + kept.begin[head + 1];
    if (std::binary_search(from, to, key)) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<MassFigures> MeasureMass(const Comparison& comparison, const AttentionInputs& inputs,
                                        Backend& backend) {
  if (comparison.compression.has_value()) return MeasureCompression(comparison, inputs, backend);
  MassFigures figures;
  for (const bool decodes : {false, true}) {
    AttentionInputs asked = inputs;
    if (decodes) {
      asked.q = inputs.q.Tokens(inputs.q.tokens - 1, 1);
      ANNULUS_ASSIGN_OR_RETURN(const bool chooses,
                               ChoosesFor(comparison.pattern, inputs.k, 1, /*step=*/true));
      if (!chooses) break;
    }
    ANNULUS_ASSIGN_OR_RETURN(Contender dense, Contender::Make(comparison.dense, asked, backend));
    ANNULUS_ASSIGN_OR_RETURN(Contender sparse, Contender::Make(comparison.pattern, asked, backend));
    ANNULUS_RETURN_IF_ERROR(RunBoth(comparison, dense, sparse));
    if (decodes) {
      CompareSteps(dense, sparse, &figures);
      continue;
    }
    CompareAnswers(dense, sparse, &figures);
    figures.speed = dense.elapsed_s() / sparse.elapsed_s();
  }
  return figures;
}

absl::StatusOr<std::optional<RecallFigures>> MeasureRecall(const Comparison& comparison,
                                                           const RecallTask& task, uint64_t seed,
                                                           Backend& backend) {
  const std::vector<float> words = AllWords(static_cast<int>(task.kv.v.dim()), seed);
  RecallFigures figures;
  const int64_t tokens = task.kv.k.tokens();
  for (const Asking& asking : task.asking) {
    if (!comparison.compression.has_value()) {
      ANNULUS_ASSIGN_OR_RETURN(const bool chooses,
                               ChoosesFor(comparison.pattern, task.kv.k, asking.q.tokens(),
                                          /*step=*/false));
      if (!chooses) return std::nullopt;
    }
    AttentionInputs inputs = {asking.q, task.kv.k, task.kv.v};
    CompressedRows rows;
    if (comparison.compression.has_value()) {
      ANNULUS_ASSIGN_OR_RETURN(
          rows, Compressed(*comparison.compression, asking.q, inputs.k, inputs.v, backend));
      inputs = {asking.q, rows.k, rows.v};
    }
    ANNULUS_ASSIGN_OR_RETURN(
        Contender asked,
        Contender::Make(comparison.compression.has_value() ? "causal" : comparison.pattern, inputs,
                        backend));
    ANNULUS_RETURN_IF_ERROR(asked.Run());
    const int64_t first = tokens - asking.q.tokens();
    for (const Question& question : asking.questions) {
      const bool seen = comparison.compression.has_value()
                            ? Kept(rows.kept, question.position)
                            : Sees(asked.pattern(), first + question.row, question.position);
      const bool found = NearestWord(asked.answer().out, question.row, words) == question.word;
      ++figures.asked;
      figures.seen += seen;
      figures.found += seen && found;
      figures.stray += !seen && found;
      figures.places += !seen ? '.' : found ? '+' : 'o';
    }
  }
  return figures;
}

}  // namespace annulus
