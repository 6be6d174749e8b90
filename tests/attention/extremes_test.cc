// Every backend at the ends of what floats hold.
#include "tests/extremes.h"

#include <cmath>
#include <string>
#include <vector>

#include "tests/attention/contenders.h"
#include "tests/attention/problem.h"
#include "tests/catch.h"

namespace annulus {
namespace {

using test::Extreme;
using test::RowTruth;

// One problem and what is right for it.
struct Question {
  Tensor q, k, v;
  Pattern pattern;
  std::vector<TokenRange> q_ranges;
  int group = 1;
  float scale = 1;
  std::vector<RowTruth> truths;  // [rows, heads]

  void Solve() {
    for (int64_t row = 0; row < q.tokens(); ++row) {
      const int64_t position = k.tokens() - q.tokens() + row;
      for (int64_t head = 0; head < q.heads(); ++head) {
        truths.push_back(test::TruthOf(test::RowOf(q, row, head, q.dim()), k, v, v.dim(),
                                       static_cast<int>(head) / group, position, pattern,
                                       double{scale}));
      }
    }
  }

  // The partial over the blocks `keys`, merged into `into`.
  absl::Status Attend(Backend* backend, const BlockSet& keys, Partial* into) const {
    const KvTable table = KvTable::FromTensors(k, v);
    AttendArgs args;
    args.q = q;
    args.q_ranges = {{k.tokens() - q.tokens(), k.tokens()}};
    args.heads = {0, static_cast<int>(q.heads())};
    args.kv_tokens = k.tokens();
    args.group = group;
    args.kv = &table;
    args.pattern = &pattern;
    args.keys = &keys;
    args.scale = scale;
    args.into = into->view();
    return backend->Attend(args);
  }
};

struct Count {
  int right = 0;
  int refused = 0;
};

// Every row is right or, where something passed f32's range, has no answer.
void CheckRows(const Question& question, double rounding, Partial* partial, Count* count) {
  const PartialView got = partial->view();
  for (size_t i = 0; i < question.truths.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    const RowTruth& truth = question.truths[i];
    const std::optional<Overflow> overflow =
        FindOverflow({got.out + at * got.v_head_dim, got.lse + at, 1, 1, got.v_head_dim});
    INFO("row " << at / got.heads << ", head " << at % got.heads << ", reach " << truth.reach
                << ", of values " << truth.v_reach << ", lse " << truth.lse << " not "
                << got.lse[i]);
    if (overflow.has_value()) {
      ++count->refused;
      REQUIRE_FALSE(truth.MustBeAnswered());
      if (truth.ScoresFit()) REQUIRE_FALSE(overflow->of_score);
      continue;
    }
    ++count->right;
    const std::string wrong =
        test::WrongWith(truth, got.out + at * got.v_head_dim, got.lse[i], rounding);
    if (!wrong.empty()) FAIL(wrong);
  }
}

double RoundingOf(const Backend& backend, DType q, DType kv) {
  if (kv == DType::kF32 || q != kv) return 1e-5;
  if (kv == DType::kBF16) return 1e-2;
  return backend.capabilities().name == "cuda" ? 1.25e-3 : 1e-5;
}

Question SomeQuestion(Rng* rng) {
  const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kBF16};
  const int dims[] = {8, 16, 64, 72};
  const DType dtype = dtypes[rng->Below(4)];
  const DType q_dtype = rng->Below(3) == 0 ? DType::kF32 : dtype;
  const int64_t tokens = rng->Between(1, 200);
  const int64_t rows = rng->Between(1, std::min<int64_t>(tokens, 20));
  const int64_t kv_heads = rng->Between(1, 2);
  const int64_t group = rng->Between(1, 5);
  const int64_t dim = dims[rng->Below(4)];
  const int64_t v_dim = dims[rng->Below(4)];
  const auto some = [rng] { return static_cast<Extreme>(rng->Below(test::kExtremes)); };
  const char* patterns[] = {"causal", "full", "window(50)", "causal & (sink(3) | window(70))"};
  const float scales[] = {1 / std::sqrt(static_cast<float>(dim)), 1, -1e-3f, 1e-30f, 1e30f, 0};
  Question question{test::ExtremeTensor(*rng, some(), q_dtype, rows, kv_heads * group, dim),
                    test::ExtremeTensor(*rng, some(), dtype, tokens, kv_heads, dim),
                    test::ExtremeTensor(*rng, some(), dtype, tokens, kv_heads, v_dim),
                    *Pattern::Parse(patterns[rng->Below(4)], static_cast<int>(kv_heads)),
                    {},
                    static_cast<int>(group),
                    scales[std::min<uint64_t>(rng->Below(10), 5)],
                    {}};
  question.Solve();
  return question;
}

// One query of one head at the last of the keys, all of dim 8, from the first values of their rows.
Question Small(DType dtype, const std::vector<float>& q, const std::vector<std::vector<float>>& k,
               float v = 1) {
  const auto fill = [dtype](Tensor* tensor, int64_t token, const std::vector<float>& row) {
    Convert(row.data(), DType::kF32,
            tensor->data() + static_cast<size_t>(token) * 8 * SizeOf(dtype), dtype,
            static_cast<int64_t>(row.size()));
  };
  const auto tokens = static_cast<int64_t>(k.size());
  Question question{Tensor(dtype, 1, 1, 8),
                    Tensor(dtype, tokens, 1, 8),
                    Tensor(dtype, tokens, 1, 8),
                    *Pattern::Parse("causal", 1),
                    {},
                    1,
                    1,
                    {}};
  fill(&question.q, 0, q);
  for (int64_t t = 0; t < tokens; ++t) {
    fill(&question.k, t, k[static_cast<size_t>(t)]);
    fill(&question.v, t, std::vector<float>(8, v * static_cast<float>(1 + t % 2)));
  }
  question.Solve();
  return question;
}

// Every backend; all blocks at once, and each block by itself, in both orders.
void CheckEverywhere(const Question& question, Count* count) {
  ForEachBackend([&](Backend* backend) {
    const double rounding = RoundingOf(*backend, question.q.dtype(), question.k.dtype());
    const int64_t blocks = BlocksOf(question.k.tokens());
    const auto attend = [&](const std::vector<BlockSet>& parts) {
      Partial partial(question.q.tokens(), question.q.heads(), question.v.dim());
      for (const BlockSet& keys : parts) {
        REQUIRE(question.Attend(backend, keys, &partial).ok());
      }
      CheckRows(question, rounding, &partial, count);
    };
    attend({BlockSet::Range(0, blocks)});
    std::vector<BlockSet> each;
    for (int64_t b = 0; b < blocks; ++b) each.push_back(BlockSet::Range(b, 1));
    attend(each);
    std::reverse(each.begin(), each.end());
    attend(each);
  });
}

}  // namespace

TEST_CASE("backends at the ends of what floats hold are right, or leave a row without an answer") {
  Count count;
  for (uint64_t seed = 1; seed <= 80; ++seed) {
    INFO("seed " << seed);
    Rng rng(seed);
    CheckEverywhere(SomeQuestion(&rng), &count);
  }
  // Neither is the rule.
  CHECK(count.right > 1000);
  CHECK(count.refused > 1000);
}

TEST_CASE("a score beyond f32 leaves a row without an answer, wherever its key lies") {
  const DType dtype = GENERATE(DType::kF32, DType::kBF16);
  CAPTURE(Name(dtype));
  for (const float sign : {1.0f, -1.0f}) {
    for (const size_t key : {0, 3, 69, 139}) {
      std::vector<std::vector<float>> k(140, {1, 1});
      k[key] = {sign * 1e30f, 0};
      Count count;
      CheckEverywhere(Small(dtype, {1e15f, 0}, k), &count);
      // Only float64 knows that −1e45 does not count beside the other keys.
      CHECK(count.refused > 0);
      if (sign > 0) CHECK(count.right == 0);
    }
  }
  // One that no row sees does no harm.
  std::vector<std::vector<float>> k(140, {1e-15f, 1});
  k[60] = {1e30f, 0};
  Question question = Small(dtype, {1e15f, 1}, k);
  question.pattern = *Pattern::Parse("window(70)", 1);
  question.truths.clear();
  question.Solve();
  Count count;
  CheckEverywhere(question, &count);
  CHECK(count.refused == 0);
}

TEST_CASE("a score beyond f32 leaves the rows that see it without an answer, in panels too") {
  const int64_t dim = GENERATE(64, 128, 256);
  const float sign = GENERATE(1.0f, -1.0f);
  const int64_t key = GENERATE(5, 100, 133, 158);
  CAPTURE(dim, sign, key);
  constexpr int64_t kTokens = 160, kRows = 100;
  Rng rng(static_cast<uint64_t>(key));
  Question question{test::ExtremeTensor(rng, Extreme::kNormal, DType::kBF16, kRows, 2, dim),
                    test::ExtremeTensor(rng, Extreme::kNormal, DType::kBF16, kTokens, 1, dim),
                    test::ExtremeTensor(rng, Extreme::kNormal, DType::kBF16, kTokens, 1, dim),
                    *Pattern::Parse("causal", 1),
                    {},
                    2,
                    1 / std::sqrt(static_cast<float>(dim)),
                    {}};
  const auto set_first = [](Tensor* tensor, int64_t row, float value) {
    Convert(&value, DType::kF32, tensor->data() + static_cast<size_t>(row * tensor->dim()) * 2,
            DType::kBF16, 1);
  };
  for (int64_t row = 0; row < kRows * 2; ++row) set_first(&question.q, row, 1e15f);
  for (int64_t token = 0; token < kTokens; ++token) {
    set_first(&question.k, token, token == key ? sign * 1e30f : 1e-15f);
  }
  question.Solve();
  const BlockSet keys = BlockSet::Range(0, BlocksOf(kTokens));
  ForEachBackend([&](Backend* backend) {
    Partial partial(kRows, 2, dim);
    REQUIRE(question.Attend(backend, keys, &partial).ok());
    Count count;
    CheckRows(question, 1e-2, &partial, &count);
    // Only float64 knows that −1e45 does not count beside the other keys.
    if (backend->capabilities().name == "reference") return;
    CHECK(count.refused == 2 * std::min(kRows, kTokens - key));
  });
}

TEST_CASE("a score beyond f32 is found among many rows too, whose keys a GPU measures first") {
  const int64_t dim = GENERATE(64, 128, 256);
  const int64_t key = GENERATE(0, 77, 500);
  const float largest = GENERATE(-1e30f, 1e15f, 1e5f);
  CAPTURE(dim, key, largest);
  constexpr int64_t kTokens = 505, kHeads = 8;
  Rng rng(static_cast<uint64_t>(dim));
  Question question{test::ExtremeTensor(rng, Extreme::kNormal, DType::kBF16, kTokens, kHeads, dim),
                    test::ExtremeTensor(rng, Extreme::kNormal, DType::kBF16, kTokens, 1, dim),
                    test::ExtremeTensor(rng, Extreme::kNormal, DType::kBF16, kTokens, 1, dim),
                    *Pattern::Parse("causal", 1),
                    {},
                    kHeads,
                    1 / std::sqrt(static_cast<float>(dim)),
                    {}};
  const auto set_first = [](Tensor* tensor, int64_t row, float value) {
    Convert(&value, DType::kF32, tensor->data() + static_cast<size_t>(row * tensor->dim()) * 2,
            DType::kBF16, 1);
  };
  for (int64_t row = 0; row < kTokens * kHeads; ++row) set_first(&question.q, row, 1e15f);
  for (int64_t token = 0; token < kTokens; ++token) {
    set_first(&question.k, token, token == key ? largest : 1e-15f);
  }
  const BlockSet keys = BlockSet::Range(0, BlocksOf(kTokens));
  const bool overflows = largest < 0;
  ForEachBackend([&](Backend* backend) {
    if (backend->capabilities().name != "cuda") return;
    Partial partial(kTokens, kHeads, dim);
    REQUIRE(question.Attend(backend, keys, &partial).ok());
    for (int64_t row = 0; row < kTokens; ++row) {
      for (int64_t head = 0; head < kHeads; ++head) {
        const float lse = partial.lse().f32()[row * kHeads + head];
        INFO("row " << row << ", head " << head << ", lse " << lse);
        REQUIRE(std::isfinite(lse) == (row < key || !overflows));
        // All of the weight is the large key's.
        if (row < key || overflows) continue;
        const float expected = 1e15f * largest * question.scale;
        REQUIRE(std::fabs(lse / expected - 1) < 0.02f);
      }
    }
  });
}

TEST_CASE("sums that overflow on the way to a score do not pass for small scores") {
  // The true scores are 0 and 1e30: what comes first is lost to −∞ or NaN in some order of adding.
  const float a = 1.5e19f;
  Count count;
  CheckEverywhere(Small(DType::kF32, {a, a, a, a}, {{-a, -a, a, a}, {0, 0, 0, 0}}), &count);
  CheckEverywhere(Small(DType::kF32, {a, a, a, a}, {{-2 * a, 2 * a, 0, 0}, {0, 0, 0, 0}}), &count);
  CheckEverywhere(Small(DType::kF32, {a, a, a, a}, {{-2 * a, -a, a, a}, {0, 0, 0, 1}}), &count);
  CheckEverywhere(Small(DType::kBF16, {a, a, a, a}, {{-a, -a, a, a}, {0, 0, 0, 0}}), &count);
}

TEST_CASE("huge scores that fit f32 are compared as they are") {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Count count;
    CheckEverywhere(Small(dtype, {1e19f}, {{1e19f}, {-1e19f}, {0}, {5e18f}}), &count);
    CheckEverywhere(Small(dtype, {1e19f}, {{-2e19f}, {-2e19f}}), &count);
    CHECK(count.refused == 0);
  }
}

TEST_CASE("values near the largest of f32 are right or refused, alone or many") {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Count count;
    CheckEverywhere(Small(dtype, {1}, {{1}}, 3e38f), &count);
    CHECK(count.refused == 0);
    CheckEverywhere(Small(dtype, {1}, std::vector<std::vector<float>>(140, {1}), 1.6e38f), &count);
    CheckEverywhere(Small(dtype, {1}, std::vector<std::vector<float>>(140, {1}), 1e35f), &count);
  }
}

TEST_CASE("subnormal queries, keys and values count as they are") {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    CAPTURE(Name(dtype));
    const bool half = dtype == DType::kF16;
    const float large = half ? 6e4f : 1e38f;
    const float small = half ? 5e-5f : 1.1e-38f;
    for (const int64_t rows : {1, 9}) {
      Rng rng(static_cast<uint64_t>(rows));
      const auto signs = [&](int64_t tokens, int64_t heads, float size) {
        Tensor tensor(dtype, tokens, heads, 16);
        for (int64_t i = 0; i < tokens * heads * 16; ++i) {
          const float value = rng.Below(2) == 0 ? size : -size;
          Convert(&value, DType::kF32, tensor.data() + static_cast<size_t>(i) * SizeOf(dtype),
                  dtype, 1);
        }
        return tensor;
      };
      const Pattern causal = *Pattern::Parse("causal", 1);
      for (const float v : {1.0f, small, small / 64, 4 * small}) {
        Count count;
        Question keys{signs(rows, 3, large),
                      signs(150, 1, small),
                      signs(150, 1, v),
                      causal,
                      {},
                      3,
                      0.25f,
                      {}};
        keys.Solve();
        CheckEverywhere(keys, &count);
        Question queries{signs(rows, 3, small),
                         signs(150, 1, large),
                         signs(150, 1, v),
                         causal,
                         {},
                         3,
                         0.25f,
                         {}};
        queries.Solve();
        CheckEverywhere(queries, &count);
        CHECK(count.refused == 0);
      }
    }
  }
}

TEST_CASE("a scale that f32 cannot count in is refused") {
  const Question question = Small(DType::kF32, {1}, {{1}});
  ForEachBackend([&](Backend* backend) {
    for (const float scale : {1e-44f, 3e38f, -1e-39f}) {
      Question other = Small(DType::kF32, {1}, {{1}});
      other.scale = scale;
      Partial partial(1, 1, 8);
      const absl::Status status = other.Attend(backend, BlockSet::Range(0, 1), &partial);
      CHECK(status.code() == absl::StatusCode::kInvalidArgument);
      CHECK(
          std::string(status.message()).find("expected 0 or a magnitude from 1.2e-38 to 2.3e38") !=
          std::string::npos);
    }
  });
}

}  // namespace annulus
