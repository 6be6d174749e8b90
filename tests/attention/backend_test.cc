// The agreement suite: every backend against the float64 oracle, the CPU backend on every
// instruction set that this machine has.
#include "attention/backend.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "tests/attention/contenders.h"
#include "tests/attention/problem.h"
#include "tests/catch.h"

namespace annulus {
namespace {

bool Can(const Backend& backend, const ProblemShape& shape) {
  const BackendCapabilities& can = backend.capabilities();
  const bool dims = std::max(shape.head_dim, shape.v_head_dim) <= can.head_dim_max &&
                    shape.head_dim % can.head_dim_multiple == 0 &&
                    shape.v_head_dim % can.head_dim_multiple == 0;
  if (dims && std::count(can.dtypes.begin(), can.dtypes.end(), shape.dtype) == 1) return true;
  WARN("skipped for " << can.name << ": " << shape.ToString());
  return false;
}

void CheckAgreement(const ProblemShape& shape, uint64_t seed) {
  const Problem problem(shape, seed);
  INFO("seed " << seed << ": " << problem.shape().ToString());
  const std::vector<ReferenceAnswer> oracle = problem.Oracle();
  ForEachBackend([&](Backend* backend) {
    if (!Can(*backend, problem.shape())) return;
    Partial partial = problem.Identity();
    const absl::Status status = backend->Attend(problem.Args(&problem.all(), &partial));
    INFO(status.message());
    REQUIRE(status.ok());
    CheckAgainst(oracle, OutTolerance(*backend, problem.shape()), &partial);
  });
}

std::string SomePattern(Rng* rng, int kv_heads, int64_t tokens) {
  const std::string first = std::to_string(rng->Between(1, tokens));
  const std::string half = std::to_string(tokens / 2);
  const std::string rest = std::to_string(tokens - tokens / 2);
  const std::vector<std::string> patterns = {
      "full",
      "causal",
      "window(" + first + ")",
      "window(" + first + ", 9)",
      "causal & (sink(3) | window(20))",
      "sink(" + first + ") & docs(" + half + ", " + rest + ")",
      "s2(16, 2, 3)",
      "s2(64, 1, 2, offset=1)",
      "s2(24, 1, 4) | window(5)",
      "power(16, 1, 1)",
      "power(64, 1, 0) & window(100)",
      "window(7) & sink(4)",  // most rows see nothing
  };
  const auto pick = [&] { return patterns[rng->Below(patterns.size())]; };
  if (kv_heads == 1 || rng->Below(3) != 0) return pick();
  return "heads(0: " + pick() + "; 1-" + std::to_string(kv_heads - 1) + ": " + pick() + ")";
}

std::vector<TokenRange> SomeQueries(Rng* rng, int64_t tokens) {
  switch (rng->Below(4)) {
    case 0:
      return {{0, tokens}};
    case 1:
      return {{tokens - 1, tokens}};
    case 2:
      return {{rng->Between(0, tokens - 1), tokens}};
    default: {
      std::vector<TokenRange> ranges;
      for (int64_t at = rng->Between(0, tokens - 1); at < tokens;) {
        const int64_t end = rng->Between(at + 1, std::min(tokens, at + 90));
        ranges.push_back({at, end});
        at = end + rng->Between(1, 40);
      }
      return ranges;
    }
  }
}

ProblemShape SomeShape(Rng* rng) {
  const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  const int dims[] = {8, 16, 24, 32, 64, 72, 128};
  ProblemShape shape;
  shape.dtype = dtypes[rng->Below(3)];
  shape.q_dtype = rng->Below(2) == 0 ? DType::kF32 : shape.dtype;
  shape.kv_heads = static_cast<int>(rng->Between(1, 3));
  shape.group = static_cast<int>(rng->Between(1, 5));
  shape.head_dim = dims[rng->Below(7)];
  shape.v_head_dim = rng->Below(2) == 0 ? shape.head_dim : dims[rng->Below(7)];
  const int64_t tokens[] = {1, 7, 63, 64, 65, 130, 200, 257};
  shape.kv_tokens = tokens[rng->Below(8)];
  shape.pattern = SomePattern(rng, shape.kv_heads, std::max<int64_t>(shape.kv_tokens, 2));
  if (shape.kv_tokens == 1) shape.pattern = "causal";
  shape.q_ranges = SomeQueries(rng, shape.kv_tokens);
  const int heads = shape.kv_heads * shape.group;
  const auto first = static_cast<int>(rng->Below(static_cast<uint64_t>(heads)));
  if (rng->Below(2) == 0) {
    shape.heads = {first, static_cast<int>(rng->Between(1, heads - first))};
  }
  return shape;
}

}  // namespace

TEST_CASE("backends agree with the oracle on random problems") {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Rng rng(seed);
    CheckAgreement(SomeShape(&rng), seed);
  }
}

TEST_CASE("backends agree with the oracle for every dtype and head_dim, few rows and many") {
  const int dims[][2] = {{8, 8}, {16, 64}, {64, 64}, {72, 8}, {128, 128}, {80, 48}, {576, 512}};
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const auto& dim : dims) {
      for (const int64_t rows : {1, 3, 70}) {
        ProblemShape shape;
        shape.dtype = dtype;
        shape.q_dtype = dtype;
        shape.group = 2;
        shape.kv_heads = 1;
        shape.head_dim = dim[0];
        shape.v_head_dim = dim[1];
        shape.kv_tokens = 140;
        shape.q_ranges = {{140 - rows, 140}};
        CheckAgreement(shape, 7);
      }
    }
  }
}

TEST_CASE("backends agree with the oracle for narrow values and every number of heads in a group") {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int v_head_dim : {8, 40}) {
      for (int group = 1; group <= 20; ++group) {
        ProblemShape shape;
        shape.dtype = shape.q_dtype = dtype;
        shape.kv_heads = 1;
        shape.group = group;
        shape.v_head_dim = v_head_dim;
        shape.kv_tokens = 130;
        shape.q_ranges = {{129, 130}};
        CheckAgreement(shape, 21);
      }
    }
  }
}

TEST_CASE("backends agree with the oracle where few queries see many blocks") {
  // permute shows a query a key or two of a block, and others none of it.
  for (const std::string pattern : {"causal", "s2(64, 9, 2) | sink(70)", "window(5000)",
                                    "causal & permute(3, 6401, window(40, 40)) | window(9)"}) {
    for (const int64_t rows : {1, 20}) {
      ProblemShape shape;
      shape.pattern = pattern;
      shape.group = 2;
      shape.kv_tokens = 6401;
      shape.q_ranges = {{shape.kv_tokens - rows, shape.kv_tokens}};
      CheckAgreement(shape, 13);
    }
  }
}

TEST_CASE("latent heads: V is the first dims of K, the same memory") {
  for (const int64_t rows : {1, 5}) {
    ProblemShape shape;
    shape.dtype = DType::kBF16;
    shape.kv_heads = 1;
    shape.group = 16;
    shape.head_dim = 576;
    shape.v_head_dim = 512;
    shape.v_is_k_prefix = true;
    shape.kv_tokens = 150;
    shape.q_ranges = {{150 - rows, 150}};
    CheckAgreement(shape, 3);
  }
}

TEST_CASE("any split of the keys, in any order, merges into the whole") {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    Rng rng(seed);
    ProblemShape shape = SomeShape(&rng);
    shape.kv_tokens = rng.Between(200, 600);
    shape.pattern = SomePattern(&rng, shape.kv_heads, shape.kv_tokens);
    shape.q_ranges = {{shape.kv_tokens - rng.Between(1, 20), shape.kv_tokens}};
    const Problem problem(shape, seed);
    INFO("seed " << seed << ": " << problem.shape().ToString());
    const std::vector<ReferenceAnswer> oracle = problem.Oracle();
    // Each block goes to one of three pieces, or of four, the last of which is often empty.
    std::vector<std::vector<BlockRun>> pieces(3 + rng.Below(2));
    for (int64_t block = 0; block < BlocksOf(shape.kv_tokens); ++block) {
      pieces[rng.Below(pieces.size())].push_back({block, 1, 1});
    }
    ForEachBackend([&](Backend* backend) {
      Partial partial = problem.Identity();
      for (const auto& piece : pieces) {
        const BlockSet keys = BlockSet::FromRuns(piece);
        REQUIRE(backend->Attend(problem.Args(&keys, &partial)).ok());
      }
      CheckAgainst(oracle, OutTolerance(*backend, problem.shape()), &partial);
    });
  }
}

TEST_CASE("a batch of uneven problems gives what each gives alone") {
  std::vector<std::unique_ptr<Problem>> problems;
  for (uint64_t seed = 1; seed <= 9; ++seed) {
    Rng rng(seed);
    ProblemShape shape = SomeShape(&rng);
    shape.kv_tokens = seed == 9 ? 3000 : rng.Between(1, 300);
    shape.q_ranges = {{shape.kv_tokens - 1, shape.kv_tokens}};
    shape.pattern = seed == 4 ? "sink(1) & window(1)" : "causal";  // one sees nothing or itself
    problems.push_back(std::make_unique<Problem>(shape, seed));
  }
  ForEachBackend([&](Backend* backend) {
    std::vector<Partial> together;
    std::vector<AttendArgs> batch;
    for (const auto& problem : problems) together.push_back(problem->Identity());
    for (size_t i = 0; i < problems.size(); ++i) {
      if (!Can(*backend, problems[i]->shape())) return;
      batch.push_back(problems[i]->Args(&problems[i]->all(), &together[i]));
    }
    REQUIRE(backend->AttendBatch(batch).ok());
    for (size_t i = 0; i < problems.size(); ++i) {
      INFO("problem " << i << ": " << problems[i]->shape().ToString());
      CheckAgainst(problems[i]->Oracle(), OutTolerance(*backend, problems[i]->shape()),
                   &together[i]);
    }
    // A problem that makes no sense, or is cancelled, fails the batch.
    const std::atomic<bool> cancelled{true};
    batch.back().cancel = &cancelled;
    CHECK(backend->AttendBatch(batch).code() == absl::StatusCode::kCancelled);
    batch.front().group = 0;
    CHECK(backend->AttendBatch(batch).code() == absl::StatusCode::kInvalidArgument);
    CHECK(backend->AttendBatch({}).ok());
  });
}

TEST_CASE("16-bit inputs cost no more accuracy than their rounding") {
  for (DType dtype : {DType::kF16, DType::kBF16}) {
    ProblemShape exact;
    exact.group = 2;
    exact.head_dim = 64;
    exact.v_head_dim = 64;
    exact.kv_tokens = 300;
    exact.q_ranges = {{290, 300}};
    ProblemShape rounded = exact;
    rounded.dtype = dtype;
    rounded.q_dtype = dtype;
    const Problem problem(rounded, 5);  // the same seed draws the same values, then rounds them
    const std::vector<ReferenceAnswer> ideal = Problem(exact, 5).Oracle();
    const std::vector<ReferenceAnswer> oracle = problem.Oracle();
    ForEachBackend([&](Backend* backend) {
      Partial partial = problem.Identity();
      REQUIRE(backend->Attend(problem.Args(&problem.all(), &partial)).ok());
      for (size_t i = 0; i < ideal.size(); ++i) {
        const std::vector<float> best(oracle[i].out.begin(), oracle[i].out.end());
        const double unavoidable = RelativeError(best.data(), ideal[i].out);
        REQUIRE(unavoidable > 1e-5);
        REQUIRE(RelativeError(partial.view().out + i * 64, ideal[i].out) <= 2 * unavoidable);
      }
    });
  }
}

TEST_CASE("large scores give the answer of the largest and no NaN") {
  for (const int64_t rows : {1, 80}) {
    for (const float spread : {3e3f, 1e5f}) {
      ProblemShape shape;
      shape.kv_tokens = 130;
      shape.pattern = "full";
      shape.q_ranges = {{130 - rows, 130}};
      shape.spread = spread;
      const Problem problem(shape, 9);
      const std::vector<ReferenceAnswer> oracle = problem.Oracle();
      ForEachBackend([&](Backend* backend) {
        Partial partial = problem.Identity();
        REQUIRE(backend->Attend(problem.Args(&problem.all(), &partial)).ok());
        REQUIRE(Finalise(partial.view()).ok());
        for (size_t i = 0; i < oracle.size(); ++i) {
          // A score s has an f32 error of about |s|·1e-7: it moves weights by as much.
          const double slack = std::abs(oracle[i].lse) * 1e-6;
          REQUIRE(std::abs(partial.view().lse[i] - oracle[i].lse) <= slack);
          REQUIRE(RelativeError(partial.view().out + i * 16, oracle[i].out) <= 4 * slack);
        }
      });
    }
  }
}

TEST_CASE("a million keys keep the accuracy of a few") {
  constexpr int64_t kTokens = int64_t{1} << 20;
  ProblemShape shape;
  shape.kv_heads = 1;
  shape.group = 2;
  shape.kv_tokens = 61 * 64;  // a prime number of distinct pages, repeated
  shape.q_ranges = {{shape.kv_tokens - 1, shape.kv_tokens}};
  const Problem few(shape, 21);
  KvTable kv(DType::kF32, 0, 1, 16, 16, BlocksOf(kTokens));
  for (int64_t b = 0; b < BlocksOf(kTokens); ++b) kv.Set(0, b, few.kv().page(0, b % 61));
  const auto oracle = *ReferenceRow(few.q().Row(0, 1), DType::kF32, kv, kTokens, few.pattern(), 0,
                                    kTokens - 1, few.scale());
  const BlockSet keys = BlockSet::Range(0, BlocksOf(kTokens));
  std::unique_ptr<Backend> cpu = *MakeBackend("cpu", 2);
  for (const int64_t rows : {1, 40}) {  // rows beyond the first repeat it: a stride of 0
    Partial partial(rows, 2, 16);
    AttendArgs args = few.Args(&keys, &partial);
    args.kv = &kv;
    args.kv_tokens = kTokens;
    args.q.tokens = rows;
    args.q.token_stride = 0;
    args.q_ranges = {{kTokens - rows, kTokens}};
    REQUIRE(cpu->Attend(args).ok());
    const float* out = partial.view().out + ((rows - 1) * 2 + 1) * 16;
    CAPTURE(rows);
    CHECK(RelativeError(out, oracle.out) <= 1e-5);
    CHECK(std::abs(partial.view().lse[(rows - 1) * 2 + 1] - oracle.lse) <= 1e-5);
  }
}

}  // namespace annulus
