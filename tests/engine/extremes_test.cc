// Every plan at the ends of what floats hold: right or refused, whoever computes what.
#include "tests/extremes.h"

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/rng.h"
#include "base/status.h"
#include "runtime/engine/local_ranks.h"
#include "tests/catch.h"

namespace annulus {
namespace {

using test::Extreme;
using test::RowTruth;

struct Question {
  Tensor q, k, v;
  std::string pattern;
  float scale = 1;

  Problem ProblemFor(int world, PartitionSpec partition) const {
    const auto heads = static_cast<int>(q.heads());
    const auto kv_heads = static_cast<int>(k.heads());
    return Problem{.q_tokens = q.tokens(),
                   .kv_tokens = k.tokens(),
                   .heads = heads,
                   .kv_heads = kv_heads,
                   .head_dim = static_cast<int>(q.dim()),
                   .v_head_dim = static_cast<int>(v.dim()),
                   .dtype = k.dtype(),
                   .pattern = *Pattern::Parse(pattern, kv_heads),
                   .home = Home::kOwners,
                   .home_partition = partition,
                   .kv = Layout::Tokens(world, heads, kv_heads, partition, BlocksOf(k.tokens()))};
  }

  absl::StatusOr<LocalRun> Run(PlanKind kind, int world, PartitionSpec partition,
                               Backend& backend) const {
    ANNULUS_ASSIGN_OR_RETURN(const Plan plan, BuildPlan(kind, ProblemFor(world, partition)));
    ANNULUS_ASSIGN_OR_RETURN(const LocalRanks ranks, LocalRanks::Create(plan, q, k, v, backend));
    return ranks.Run(scale);
  }

  std::vector<RowTruth> Truths() const {
    std::vector<RowTruth> truths;
    const Pattern parsed = *Pattern::Parse(pattern, static_cast<int>(k.heads()));
    for (int64_t row = 0; row < q.tokens(); ++row) {
      for (int64_t head = 0; head < q.heads(); ++head) {
        truths.push_back(test::TruthOf(test::RowOf(q, row, head, q.dim()), k, v, v.dim(),
                                       static_cast<int>(head * k.heads() / q.heads()),
                                       k.tokens() - q.tokens() + row, parsed, double{scale}));
      }
    }
    return truths;
  }
};

// The row and head that an error names, as an index of [rows, heads].
size_t Named(const absl::Status& status, int64_t heads) {
  INFO(status.ToString());
  REQUIRE(status.code() == absl::StatusCode::kInvalidArgument);
  const std::string text(status.message());
  int row = 0;
  int head = 0;
  const size_t at = text.find("q row ");
  REQUIRE(at != std::string::npos);
  REQUIRE(std::sscanf(text.c_str() + at, "q row %d, head %d", &row, &head) == 2);
  return static_cast<size_t>(row * heads + head);
}

}  // namespace

TEST_CASE("every plan at the ends of what floats hold is right, or names a row without an answer") {
  const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kBF16};
  const char* patterns[] = {"causal", "full", "window(90)", "s2(16,2,3)"};
  const int dims[] = {8, 16, 64, 72};
  const std::unique_ptr<Backend> backend = *MakeBackend("cpu", 1);
  int right = 0;
  int refused = 0;
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    Rng rng(seed);
    const DType dtype = dtypes[rng.Below(4)];
    const int64_t kv_tokens = rng.Between(1, 500);
    const int64_t q_tokens = rng.Between(1, std::min<int64_t>(kv_tokens, 30));
    const int64_t kv_heads = rng.Between(1, 2);
    const int64_t dim = dims[rng.Below(4)];
    const auto some = [&rng] { return static_cast<Extreme>(rng.Below(test::kExtremes)); };
    const Question question{
        test::ExtremeTensor(rng, some(), dtype, q_tokens, kv_heads * rng.Between(1, 4), dim),
        test::ExtremeTensor(rng, some(), dtype, kv_tokens, kv_heads, dim),
        test::ExtremeTensor(rng, some(), dtype, kv_tokens, kv_heads, dims[rng.Below(4)]),
        patterns[rng.Below(4)], 1 / std::sqrt(static_cast<float>(dim))};
    const std::vector<RowTruth> truths = question.Truths();
    const double rounding = dtype == DType::kBF16 ? 1e-2 : 1e-5;
    for (const PlanKind kind : kPlanKinds) {
      for (const int world : {1, 2, 3, 7}) {
        INFO("seed " << seed << ", " << std::string(Name(kind)) << " on " << world);
        const auto run = question.Run(kind, world, {PartitionKind::kZigzag, 1}, *backend);
        if (!run.ok()) {
          ++refused;
          REQUIRE_FALSE(truths[Named(run.status(), question.q.heads())].MustBeAnswered());
          continue;
        }
        ++right;
        for (size_t i = 0; i < truths.size(); ++i) {
          INFO("row " << i / static_cast<size_t>(question.q.heads()) << ", head "
                      << i % static_cast<size_t>(question.q.heads()));
          const std::string wrong =
              test::WrongWith(truths[i], run->result.out().f32() + i * truths[i].out.size(),
                              run->result.lse().f32()[i], rounding);
          if (!wrong.empty()) FAIL(wrong);
        }
      }
    }
  }
  CHECK(right > 100);
  CHECK(refused > 100);
}

TEST_CASE("the first row whose score passes f32's range is named, whatever the plan") {
  Rng rng(5);
  const auto normal = [&rng](int64_t tokens, int64_t heads) {
    return test::ExtremeTensor(rng, Extreme::kNormal, DType::kF32, tokens, heads, 16);
  };
  Question question{normal(400, 4), normal(400, 2), normal(400, 2), "causal", 0.25f};
  // KV head 1 at 170: rows from there on do not fit where their head reads it and q is as large.
  std::fill_n(question.k.f32() + (170 * 2 + 1) * 16, 16, 1e25f);
  for (const int64_t row : {100, 211, 390}) {  // the first is before the key
    std::fill_n(question.q.f32() + (row * 4 + 3) * 16, 16, -1e20f);
  }
  const std::unique_ptr<Backend> backend = *MakeBackend("cpu", 2);
  const std::unique_ptr<Backend> reference = *MakeBackend("reference", 2);
  for (const PlanKind kind : kPlanKinds) {
    for (const int world : {1, 2, 3, 7}) {
      for (const PartitionKind partition : {PartitionKind::kZigzag, PartitionKind::kBlockCyclic}) {
        INFO(std::string(Name(kind)) << " on " << world);
        const auto run = question.Run(kind, world, {partition, 1}, *backend);
        CHECK(run.status().message() ==
              "q row 211, head 3: a score passes f32's range; expected |scale·q·k|, and each sum "
              "on the way to it, below 2.3e38, and below 4096 where scores of several parts of the "
              "keys tie");
        CHECK(run.status().code() == absl::StatusCode::kInvalidArgument);
      }
    }
  }
  // float64 alone knows that −4e45 is nothing beside the others.
  CHECK(question.Run(PlanKind::kRing, 3, {PartitionKind::kZigzag, 1}, *reference).ok());
  std::fill_n(question.q.f32() + (211 * 4 + 3) * 16, 16, 1e20f);
  CHECK(Named(question.Run(PlanKind::kRing, 3, {PartitionKind::kZigzag, 1}, *reference).status(),
              4) == 211 * 4 + 3);
}

}  // namespace annulus
