#include "runtime/cli/quality/measure.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/time/clock.h"
#include "base/status.h"
#include "runtime/cli/problem.h"
#include "runtime/cli/relative_difference.h"
#include "runtime/engine/local_ranks.h"
#include "sharding/planner.h"
#include "sharding/work.h"

namespace annulus {
namespace {

struct Answer {
  Tensor out;       // f32 [q_tokens, heads, head_dim]
  Tensor lse;       // f32 [q_tokens, heads, 1]
  Pattern pattern;  // with its lists
  int64_t pairs = 0;
  int64_t tokens_read = 0;
  double elapsed_s = 0;  // of selection and attention
};

absl::StatusOr<Answer> AnswerOf(const std::string& pattern, const AttentionInputs& inputs,
                                int repeat, Backend& backend) {
  const auto& [q, k, v] = inputs;
  ProblemFlags flags{.q_tokens = q.tokens,
                     .kv_tokens = k.tokens,
                     .heads = q.heads,
                     .kv_heads = k.heads,
                     .head_dim = q.dim,
                     .v_head_dim = v.dim,
                     .dtype = q.dtype,
                     .placement = {},
                     .pattern = pattern};
  const absl::Time begin = absl::Now();
  ANNULUS_RETURN_IF_ERROR(SelectLists(q, k, backend, &flags));
  const absl::Duration selection = absl::Now() - begin;
  ANNULUS_ASSIGN_OR_RETURN(const Problem problem, MakeProblem(flags));
  ANNULUS_ASSIGN_OR_RETURN(const Plan plan, BuildPlan(PlanKind::kRing, problem));
  ANNULUS_ASSIGN_OR_RETURN(const LocalRanks ranks, LocalRanks::Create(plan, q, k, v, backend));
  Answer answer{
      .out = {}, .lse = {}, .pattern = problem.pattern, .pairs = SizeOf(problem).visited_pairs};
  for (const auto& step : ComputeLoads(plan)) {
    for (const ComputeLoad& load : step) answer.tokens_read += load.tokens_read;
  }
  absl::Duration fastest = absl::InfiniteDuration();
  for (int i = 0; i < repeat; ++i) {
    const absl::Time run_begin = absl::Now();
    ANNULUS_ASSIGN_OR_RETURN(LocalRun run, ranks.Run(1 / std::sqrt(static_cast<float>(q.dim))));
    fastest = std::min(fastest, absl::Now() - run_begin);
    answer.lse = std::move(run.result).TakeLse();
    answer.out = std::move(run.result).TakeOut();
  }
  answer.elapsed_s = absl::ToDoubleSeconds(selection + fastest);
  return answer;
}

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

// Of dense attention's weights, those that the answer has; mean over rows and heads.
double MassOf(const Answer& answer, const Answer& dense) {
  double mass = 0;
  const int64_t rows = answer.lse.view().size();
  for (int64_t row = 0; row < rows; ++row) {
    mass += std::exp(answer.lse.f32()[row] - dense.lse.f32()[row]);
  }
  return mass / static_cast<double>(rows);
}

}  // namespace

absl::StatusOr<MassFigures> MeasureMass(const Comparison& comparison, const AttentionInputs& inputs,
                                        Backend& backend) {
  MassFigures figures;
  for (const bool decodes : {false, true}) {
    AttentionInputs asked = inputs;
    if (decodes) asked.q = inputs.q.Tokens(inputs.q.tokens - 1, 1);
    ANNULUS_ASSIGN_OR_RETURN(const Answer dense,
                             AnswerOf(comparison.dense, asked, comparison.repeat, backend));
    ANNULUS_ASSIGN_OR_RETURN(const Answer answer,
                             AnswerOf(comparison.pattern, asked, comparison.repeat, backend));
    if (decodes) {
      figures.decode_bytes =
          static_cast<double>(answer.tokens_read) / static_cast<double>(dense.tokens_read);
      figures.decode_speed = dense.elapsed_s / answer.elapsed_s;
      continue;
    }
    figures.density = static_cast<double>(answer.pairs) / static_cast<double>(dense.pairs);
    figures.mass = MassOf(answer, dense);
    figures.error = RelativeDifference(answer.out, dense.out);
    figures.speed = dense.elapsed_s / answer.elapsed_s;
  }
  return figures;
}

absl::StatusOr<RecallFigures> MeasureRecall(const std::string& pattern, const RecallTask& task,
                                            uint64_t seed, Backend& backend) {
  const std::vector<float> words = AllWords(static_cast<int>(task.kv.v.dim()), seed);
  RecallFigures figures;
  for (const Asking& asking : task.asking) {
    ANNULUS_ASSIGN_OR_RETURN(
        const Answer answer,
        AnswerOf(pattern, {asking.q, task.kv.k, task.kv.v}, /*repeat=*/1, backend));
    const int64_t first = task.kv.k.tokens() - asking.q.tokens();
    for (const Question& question : asking.questions) {
      const bool seen = Sees(answer.pattern, first + question.row, question.position);
      const bool found = NearestWord(answer.out, question.row, words) == question.word;
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
