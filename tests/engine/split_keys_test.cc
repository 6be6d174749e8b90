// Keys cut into ranges: what the parts give, merged, is what all keys give, wherever the queries
// are.
#include <cmath>

#include "attention/pattern.h"
#include "base/rng.h"
#include "runtime/engine/local_ranks.h"
#include "tests/attention/pattern_random.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr int kDim = 16;

struct Whole {
  Tensor q, k, v;
  Problem problem;
};

Tensor Normal(Rng& rng, int64_t tokens, int64_t heads) {
  Tensor tensor(DType::kF32, tokens, heads, kDim);
  for (int64_t i = 0; i < tensor.view().size(); ++i) tensor.f32()[i] = rng.Normal();
  return tensor;
}

Whole RandomWhole(Rng& rng) {
  const int kv_heads = static_cast<int>(rng.Between(1, 3));
  const int heads = kv_heads * static_cast<int>(rng.Between(1, 2));
  const int64_t kv_tokens = rng.Between(1, 700), q_tokens = rng.Between(1, 150);
  const int world = static_cast<int>(rng.Between(1, 7));
  const PartitionSpec cuts[] = {{PartitionKind::kZigzag, 1}, {PartitionKind::kBlockCyclic, 2}};
  const PartitionSpec cut = cuts[rng.Below(2)];
  absl::StatusOr<Pattern> pattern = absl::InternalError("none yet");
  while (!pattern.ok()) {
    pattern = Pattern::Parse(PatternMaker(rng.Next(), kv_heads, kv_tokens).Make(2).text, kv_heads);
  }
  return {Normal(rng, q_tokens, heads), Normal(rng, kv_tokens, kv_heads),
          Normal(rng, kv_tokens, kv_heads),
          Problem{.q_tokens = q_tokens,
                  .q_start = rng.Between(0, kv_tokens + 200),
                  .kv_tokens = kv_tokens,
                  .heads = heads,
                  .kv_heads = kv_heads,
                  .head_dim = kDim,
                  .v_head_dim = kDim,
                  .dtype = DType::kF32,
                  .pattern = *pattern,
                  .home_partition = cut,
                  .kv = Layout::Tokens(world, heads, kv_heads, cut, BlocksOf(kv_tokens))}};
}

Partial Answer(const Whole& whole, TokenRange keys, PlanKind kind, Backend& backend) {
  Problem problem = whole.problem;
  problem.pattern = problem.pattern.KeysFrom(keys.begin);
  problem.keys_end = keys.end;
  absl::StatusOr<Plan> plan = BuildPlan(kind, problem);
  INFO(plan.status());
  REQUIRE(plan.ok());
  REQUIRE(plan->Validate().ok());
  absl::StatusOr<LocalRanks> ranks = LocalRanks::Create(*plan, whole.q, whole.k, whole.v, backend);
  REQUIRE(ranks.ok());
  absl::StatusOr<LocalRun> run = ranks->Run(0.25f);
  INFO(run.status());
  REQUIRE(run.ok());
  CHECK(run->bytes_moved == plan->BytesTotal());
  return std::move(run->result);
}

// Of the whole tensor; rows that see nothing have −∞ on both sides.
double Difference(const Tensor& got, const Tensor& want) {
  double error = 0, norm = 0;
  for (int64_t i = 0; i < want.view().size(); ++i) {
    const double a = got.f32()[i], b = want.f32()[i];
    if (a == b) continue;
    error += (a - b) * (a - b);
  }
  for (int64_t i = 0; i < want.view().size(); ++i) {
    const double b = want.f32()[i];
    if (!std::isinf(b)) norm += b * b;
  }
  return norm == 0 ? std::sqrt(error) : std::sqrt(error / norm);
}

TEST_CASE("random splits of the keys: merged parts are the whole") {
  const std::unique_ptr<Backend> cpu = *MakeBackend("cpu", 2);
  const std::unique_ptr<Backend> reference = *MakeBackend("reference", 1);
  for (uint64_t seed = 1; seed <= 120; ++seed) {
    Rng rng(seed);
    const Whole whole = RandomWhole(rng);
    const Problem& problem = whole.problem;
    INFO("seed " << seed << " pattern " << problem.pattern.text() << " q " << problem.q_tokens
                 << " from " << *problem.q_start << " kv " << problem.kv_tokens << " world "
                 << problem.world());
    const Partial want = Answer(whole, {0, problem.kv_tokens}, PlanKind::kRing, *reference);
    Partial merged(problem.q_tokens, problem.heads, kDim);
    for (int64_t begin = 0; begin < problem.kv_tokens;) {
      const int64_t end = rng.Between(begin + 1, problem.kv_tokens);
      const PlanKind kind = kPlanKinds[rng.Below(std::size(kPlanKinds))];
      INFO("keys " << begin << ":" << end << " by " << Name(kind));
      Partial part = Answer(whole, {begin, end}, kind, rng.Below(4) == 0 ? *reference : *cpu);
      Merge(merged.view(), part.view());
      begin = end;
    }
    CHECK(Difference(merged.out(), want.out()) < 1e-6);
    CHECK(Difference(merged.lse(), want.lse()) < 1e-6);
  }
}

}  // namespace
}  // namespace annulus
