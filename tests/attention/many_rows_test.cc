// Backends against the float64 oracle on what long prefills are made of: many 16-bit rows, head
// dims of models, blocks seen whole and in part, scores of every course.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "tests/attention/contenders.h"
#include "tests/attention/problem.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr double kLseTolerance = 2e-5;

// As CheckAgainst; the CPU's bf16 products round each pair of them, which among so many rows shows.
void CheckRows(const std::vector<ReferenceAnswer>& oracle, double out_tolerance,
               const PartialView& got, double lse_tolerance = kLseTolerance) {
  for (size_t i = 0; i < oracle.size(); ++i) {
    INFO("row " << i / static_cast<size_t>(got.heads) << " head "
                << i % static_cast<size_t>(got.heads));
    const float* out = got.out + static_cast<int64_t>(i) * got.v_head_dim;
    if (std::isinf(oracle[i].lse)) {
      REQUIRE(got.lse[i] == -std::numeric_limits<float>::infinity());
      continue;
    }
    REQUIRE(std::abs(got.lse[i] - oracle[i].lse) <= lse_tolerance);
    REQUIRE(RelativeError(out, oracle[i].out) <= out_tolerance);
  }
}

// At once, or in two calls of which the second merges into what the first left.
void CheckInParts(const Problem& problem, Rng& rng, double lse_tolerance) {
  const std::vector<ReferenceAnswer> oracle = problem.Oracle();
  const int64_t blocks = BlocksOf(problem.shape().kv_tokens);
  const int64_t cut = rng.Below(2) == 0 ? 0 : rng.Between(0, blocks);
  const BlockSet pieces[] = {BlockSet::Range(0, cut), BlockSet::Range(cut, blocks)};
  ForEachBackend([&](Backend* backend) {
    Partial partial = problem.Identity();
    for (const BlockSet& piece : pieces) {
      REQUIRE(backend->Attend(problem.Args(&piece, &partial)).ok());
    }
    CheckRows(oracle, OutTolerance(*backend, problem.shape()), partial.view(), lse_tolerance);
  });
}

TEST_CASE("many 16-bit rows agree with the oracle, whatever they see") {
  const char* patterns[] = {"causal",          "full",
                            "window(100)",     "s2(64, 2, 3)",
                            "s2(24, 1, 4)",    "causal & (sink(70) | window(20))",
                            "power(16, 1, 1)", "heads(0: window(7) & sink(4); 1: causal)"};
  constexpr int kDims[][2] = {{64, 64}, {128, 128}, {256, 256}, {192, 128},
                              {80, 80}, {96, 64},   {160, 96},  {232, 248}};
  for (uint64_t seed = 0; seed < 64; ++seed) {  // each pattern with each head dim
    Rng rng(seed + 1);
    ProblemShape shape;
    shape.dtype = rng.Below(2) == 0 ? DType::kBF16 : DType::kF16;
    shape.q_dtype = shape.dtype;
    shape.kv_heads = 2;
    shape.group = static_cast<int>(rng.Between(1, 3));
    shape.head_dim = kDims[seed / 8][0];
    shape.v_head_dim = kDims[seed / 8][1];
    shape.kv_tokens = rng.Between(2, 7) * 64 + (rng.Below(3) == 0 ? 0 : rng.Between(1, 63));
    shape.pattern = patterns[seed % 8];
    const int64_t first = rng.Below(2) == 0 ? 0 : rng.Between(0, shape.kv_tokens - 40);
    shape.q_ranges = {{first, shape.kv_tokens}};
    if (rng.Below(3) == 0 && first + 60 < shape.kv_tokens) {
      shape.q_ranges = {{first, first + 21}, {first + 50, shape.kv_tokens}};
    }
    const Problem problem(shape, seed);
    INFO("seed " << seed << ": " << problem.shape().ToString());
    const std::vector<ReferenceAnswer> oracle = problem.Oracle();
    ForEachBackend([&](Backend* backend) {
      Partial partial = problem.Identity();
      REQUIRE(backend->Attend(problem.Args(&problem.all(), &partial)).ok());
      CheckRows(oracle, OutTolerance(*backend, problem.shape()), partial.view());
    });
  }
}

// Up to 64 rows of a KV head, which a GPU may do by themselves; also in parts, when the context is
// long for so few.
TEST_CASE("the rows of one block of queries agree with the oracle, whatever they see") {
  const char* patterns[] = {"causal", "full", "window(100)", "s2(64, 2, 3)", "power(16, 1, 1)"};
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Rng rng(seed + 1);
    ProblemShape shape;
    shape.dtype = shape.q_dtype = rng.Below(2) == 0 ? DType::kBF16 : DType::kF16;
    shape.kv_heads = 2;
    shape.group = static_cast<int>(rng.Between(1, 3));
    shape.head_dim = shape.v_head_dim = rng.Below(2) == 0 ? 64 : 128;
    shape.kv_tokens = rng.Between(2, seed % 5 == 0 ? 80 : 9) * 64 + rng.Between(0, 63);
    shape.pattern = patterns[rng.Below(5)];
    const int64_t rows = rng.Between(17, 64) / shape.group;
    const int64_t first = rng.Between(0, shape.kv_tokens / 64 - 1) * 64 + rng.Between(0, 64 - rows);
    shape.q_ranges = {{first, first + rows}};
    const Problem problem(shape, seed);
    INFO("seed " << seed << ": " << problem.shape().ToString());
    CheckInParts(problem, rng, shape.kv_tokens > 1000 ? 4e-5 : kLseTolerance);
  }
}

TEST_CASE("latent heads of 16 bits agree with the oracle, few rows and many") {
  const char* patterns[] = {"causal", "full", "window(100)", "causal & (sink(70) | window(20))"};
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    Rng rng(seed);
    ProblemShape shape;
    shape.dtype = shape.q_dtype = seed % 2 == 0 ? DType::kBF16 : DType::kF16;
    shape.kv_heads = 1;
    shape.group = static_cast<int>(rng.Between(1, 3)) * (rng.Below(3) == 0 ? 40 : 1);
    shape.head_dim = rng.Below(2) == 0 ? 576 : 512;
    shape.v_head_dim = 512;
    shape.v_is_k_prefix = true;
    shape.kv_tokens = rng.Between(1, 12) * 64 + (rng.Below(3) == 0 ? 0 : rng.Between(1, 63));
    shape.pattern = patterns[rng.Below(4)];
    const int64_t rows =
        shape.group > 3 ? 2 : rng.Between(1, std::min<int64_t>(shape.kv_tokens, 90));
    shape.q_ranges = {{shape.kv_tokens - rows, shape.kv_tokens}};
    const Problem problem(shape, seed);
    INFO("seed " << seed << ": " << problem.shape().ToString());
    CheckInParts(problem, rng, kLseTolerance);
  }
}

// Scores of key j of `keys`, in natural units, that queries and keys are made to have.
double Course(int kind, int64_t j, int64_t keys) {
  const double share = static_cast<double>(j) / static_cast<double>(keys);
  switch (kind) {
    case 0:
      return 150 * share;  // rises: each block brings a new maximum
    case 1:
      return -200 * share;
    case 2:
      return j >= keys - 4 ? 30 : 0;  // a sink at the end
    case 3:
      return j / 64 % 3 == 2 ? 40.0 * static_cast<double>(j / 64) : -30;  // jumps
    case 4:
      return j == 5 ? 200 : 0;  // one peak
    default:
      return 0;
  }
}

TEST_CASE("scores that rise, fall, jump or have one peak lose no accuracy") {
  constexpr int64_t kTokens = 64 * 9 + 17;
  constexpr int64_t kRows = 150;
  for (const int dim : {64, 128, 256}) {
    for (int kind = 0; kind <= 5; ++kind) {
      const DType dtype = kind % 2 == 0 ? DType::kBF16 : DType::kF16;
      CAPTURE(dim, kind);
      const float scale = 1 / std::sqrt(static_cast<float>(dim));
      Rng rng(static_cast<uint64_t>(dim + kind));
      const auto fill = [&](int64_t tokens, int heads, const auto& first) {
        Tensor tensor(dtype, tokens, heads, dim);
        for (int64_t i = 0; i < tokens * heads * dim; ++i) {
          const bool lead = i % dim == 0;
          const float x = lead ? first(i / dim / heads) : rng.Normal();
          Convert(&x, DType::kF32, tensor.data() + static_cast<size_t>(i) * 2, dtype, 1);
        }
        return tensor;
      };
      constexpr float kLead = 8;
      const Tensor q = fill(kRows, 3, [](int64_t) { return kLead; });
      const Tensor k = fill(kTokens, 1, [&](int64_t j) {
        return static_cast<float>(Course(kind, j, kTokens)) / (kLead * scale);
      });
      const Tensor v = fill(kTokens, 1, [&](int64_t) { return rng.Normal(); });
      const KvTable kv = KvTable::FromTensors(k, v);
      const BlockSet keys = BlockSet::Range(0, BlocksOf(kTokens));
      const Pattern pattern = *Pattern::Parse("causal", 1);
      Partial partial(kRows, 3, dim);
      AttendArgs args;
      args.q = q;
      args.q_ranges = {{kTokens - kRows, kTokens}};
      args.heads = {0, 3};
      args.group = 3;
      args.kv_tokens = kTokens;
      args.kv = &kv;
      args.pattern = &pattern;
      args.keys = &keys;
      args.scale = scale;
      args.into = partial.view();
      std::vector<int64_t> rows = {0, 1, 62, 63, 64, 100, kRows - 1};
      std::vector<ReferenceAnswer> oracle;
      for (const int64_t row : rows) {
        oracle.push_back(*ReferenceRow(q.view().Row(row, 2), dtype, kv, kTokens, pattern, 0,
                                       kTokens - kRows + row, scale));
      }
      ForEachBackend([&](Backend* backend) {
        SetIdentity(partial.view());
        REQUIRE(backend->Attend(args).ok());
        for (size_t i = 0; i < rows.size(); ++i) {
          CAPTURE(rows[i]);
          const int64_t place = rows[i] * 3 + 2;
          // Scores have an f32 error of their size.
          const double slack = 1e-5 + std::abs(oracle[i].lse) * 1e-6;
          CHECK(std::abs(partial.view().lse[place] - oracle[i].lse) <= slack);
          CHECK(RelativeError(partial.view().out + place * dim, oracle[i].out) <= 1e-2);
        }
      });
    }
  }
}

TEST_CASE("the same problem has the same answer, bit by bit") {
  // Few rows over many keys, and so many that a GPU's thread blocks take tiles as they come.
  const auto [dim, rows] = GENERATE(
      table<int, int64_t>({{64, 1}, {128, 1}, {64, 1500}, {128, 700}, {128, 3000}, {256, 1500}}));
  CAPTURE(dim, rows);
  ProblemShape shape;
  shape.dtype = shape.q_dtype = DType::kBF16;
  shape.kv_heads = 2;
  shape.group = 4;
  shape.head_dim = shape.v_head_dim = dim;
  shape.kv_tokens = 3000;
  shape.pattern = "causal";
  shape.q_ranges = {{shape.kv_tokens - rows, shape.kv_tokens}};
  const Problem problem(shape, 1);
  ForEachBackend([&](Backend* backend) {
    if (backend->capabilities().name != "cuda") return;
    Partial first = problem.Identity();
    REQUIRE(backend->Attend(problem.Args(&problem.all(), &first)).ok());
    for (int i = 0; i < 2; ++i) {
      Partial again = problem.Identity();
      REQUIRE(backend->Attend(problem.Args(&problem.all(), &again)).ok());
      const auto same = [](const Tensor& a, const Tensor& b) {
        const int64_t count = a.tokens() * a.heads() * a.dim();
        return std::memcmp(a.data(), b.data(), static_cast<size_t>(count) * sizeof(float)) == 0;
      };
      REQUIRE(same(first.out(), again.out()));
      REQUIRE(same(first.lse(), again.lse()));
    }
  });
}

}  // namespace
}  // namespace annulus
