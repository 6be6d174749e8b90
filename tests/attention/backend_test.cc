// The agreement suite: every backend against the float64 oracle, the CPU backend on every
// instruction set that this machine has.
#include "attention/backend.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "hwy/targets.h"
#include "tests/attention/problem.h"
#include "tests/catch.h"

namespace annulus {
namespace {

struct Contender {
  std::string name;
  int64_t simd_target;  // 0: leave the choice alone
  std::unique_ptr<Backend> backend;
};

void ChooseTarget(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// All backends; the CPU one once per instruction set.
std::vector<Contender> Contenders() {
  std::vector<Contender> all;
  all.push_back({"reference", 0, *MakeBackend("reference", 2)});
  ChooseTarget(0);
  const int64_t have = hwy::SupportedTargets();
  for (int64_t left = have; left != 0; left &= left - 1) {
    ChooseTarget(left & ~(left - 1));
    std::unique_ptr<Backend> backend = *MakeBackend("cpu", 2);
    const std::string name = "cpu " + backend->capabilities().detail;
    // Sets for which nothing was compiled fall back on another: test that once.
    const bool known =
        std::any_of(all.begin(), all.end(), [&](const Contender& c) { return c.name == name; });
    if (!known) all.push_back({name, left & ~(left - 1), std::move(backend)});
  }
  ChooseTarget(0);
  return all;
}

void ForEachBackend(const std::function<void(Backend*)>& test) {
  for (Contender& contender : Contenders()) {
    ChooseTarget(contender.simd_target);
    INFO("backend " << contender.name);
    test(contender.backend.get());
    ChooseTarget(0);
  }
}

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
    CheckAgainst(oracle, &partial);
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

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
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

TEST_CASE("backends agree with the oracle where few queries see many blocks") {
  for (const std::string pattern : {"causal", "s2(64, 9, 2) | sink(70)", "window(5000)"}) {
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
      CheckAgainst(oracle, &partial);
    });
  }
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

TEST_CASE("no keys leave the partial as it was") {
  const Problem problem({}, 1);
  const BlockSet none;
  ForEachBackend([&](Backend* backend) {
    Partial partial = problem.Identity();
    partial.view().out[3] = 2.5f;
    partial.view().lse[0] = 1.0f;
    REQUIRE(backend->Attend(problem.Args(&none, &partial)).ok());
    CHECK(partial.view().out[3] == 2.5f);
    CHECK(partial.view().lse[0] == 1.0f);
    CHECK(partial.view().lse[1] == -std::numeric_limits<float>::infinity());
  });
}

TEST_CASE("the bits do not depend on the number of threads, nor on other callers") {
  ProblemShape shape;
  shape.kv_tokens = 64 * 150;
  shape.q_ranges = {{64 * 150 - 3, 64 * 150}};
  const Problem problem(shape, 2);
  std::unique_ptr<Backend> one = *MakeBackend("cpu", 1);
  Partial expected = problem.Identity();
  REQUIRE(one->Attend(problem.Args(&problem.all(), &expected)).ok());
  for (int threads : {2, 5}) {
    std::unique_ptr<Backend> shared = *MakeBackend("cpu", threads);
    std::vector<std::thread> callers;
    std::atomic<int> right{0};
    for (int caller = 0; caller < 4; ++caller) {
      callers.emplace_back([&] {
        for (int round = 0; round < 5; ++round) {
          Partial partial = problem.Identity();
          if (!shared->Attend(problem.Args(&problem.all(), &partial)).ok()) continue;
          right += std::memcmp(partial.out().data(), expected.out().data(),
                               expected.out().size_bytes()) == 0;
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(right == 20);
  }
}

TEST_CASE("a page that the pattern reads must be there, others need not") {
  ProblemShape shape;
  shape.kv_tokens = 300;
  shape.q_ranges = {{250, 300}};
  shape.pattern = "window(100)";
  Problem problem(shape, 1);
  problem.mutable_kv()->Set(1, 0, {});  // too far back to be seen
  ForEachBackend([&](Backend* backend) {
    Partial partial = problem.Identity();
    REQUIRE(backend->Attend(problem.Args(&problem.all(), &partial)).ok());
  });
  problem.mutable_kv()->Set(1, 3, {});
  ForEachBackend([&](Backend* backend) {
    Partial partial = problem.Identity();
    const absl::Status status = backend->Attend(problem.Args(&problem.all(), &partial));
    CHECK(status.code() == absl::StatusCode::kInternal);
    CHECK(status.message() ==
          "the shard holds no page for KV head 1, block 3, which the pattern reads");
  });
}

TEST_CASE("a cancelled call ends soon") {
  // Hours of work on little memory: all blocks are one page and all queries one row.
  constexpr int64_t kTokens = int64_t{1} << 20;
  const Problem small({}, 1);
  KvTable kv(DType::kF32, 0, 2, 16, 16, BlocksOf(kTokens));
  for (int64_t b = 0; b < BlocksOf(kTokens); ++b) {
    for (int head : {0, 1}) kv.Set(head, b, small.kv().page(head, 0));
  }
  const BlockSet keys = BlockSet::Range(0, BlocksOf(kTokens));
  const int64_t rows = 1 << 16;
  ForEachBackend([&](Backend* backend) {
    Partial partial(rows, 2, 16);
    AttendArgs args = small.Args(&keys, &partial);
    args.kv = &kv;
    args.kv_tokens = kTokens;
    args.q.tokens = rows;
    args.q.token_stride = 0;
    args.q_ranges = {{kTokens - rows, kTokens}};
    std::atomic<bool> cancel{false};
    args.cancel = &cancel;
    std::atomic<double> cancelled_at{0};
    std::thread caller([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      cancelled_at = Seconds();
      cancel = true;
    });
    const absl::Status status = backend->Attend(args);
    const double late = Seconds() - cancelled_at;
    caller.join();
    CHECK(status.code() == absl::StatusCode::kCancelled);
    // The oracle looks only between rows. The bound is loose, for sanitizers and busy hosts.
    CHECK(late < (backend->capabilities().name == "reference" ? 20.0 : 1.0));
  });
}

TEST_CASE("shapes that do not fit are refused by field, value and what was expected") {
  const Problem problem({}, 1);
  ForEachBackend([&](Backend* backend) {
    Partial partial = problem.Identity();
    const AttendArgs good = problem.Args(&problem.all(), &partial);
    const auto refused = [&](const AttendArgs& args, const std::string& text) {
      const absl::Status status = backend->Attend(args);
      CHECK(status.code() == absl::StatusCode::kInvalidArgument);
      CHECK(std::string(status.message()) == text);
    };
    AttendArgs args = good;
    args.q.dtype = DType::kF16;
    refused(args, "q dtype is f16, expected f32 or that of the keys, f32");
    args = good;
    args.q.dim = 24;
    refused(args, "q head_dim is 24, expected 16, as in the keys");
    args = good;
    args.q.tokens = 99;
    refused(args, "the number of query rows is 99, expected 100, the sum of the query ranges");
    args = good;
    args.q_ranges = {{50, 100}, {0, 50}};
    refused(args,
            "a query range is [0, 50), expected ranges that ascend and do not overlap, the next "
            "from 100 on");
    args = good;
    args.kv_tokens = 99;
    refused(args, "the end of the query ranges is 100, expected at most kv_tokens, 99");
    args = good;
    args.group = 0;
    refused(args, "group is 0, expected at least 1");
    args = good;
    args.heads = {1, 2};
    refused(args,
            "heads is [1, 3), expected query heads of the table's KV heads [0, 2) with group 1, "
            "among the pattern's 2 KV heads");
    args = good;
    args.scale = std::nanf("");
    refused(args, "scale is nan, expected a finite number");
    args = good;
    args.into.v_head_dim = 8;
    refused(args, "the partial to merge into is [100, 2, 8], expected [100, 2, 16]");
  });
}

TEST_CASE("dims outside a backend's capabilities are refused") {
  std::unique_ptr<Backend> cpu = *MakeBackend("auto", 1);
  CHECK(cpu->capabilities().name == "cpu");
  for (const auto& [dim, v_dim, text] : std::vector<std::tuple<int, int, std::string>>{
           {12, 16, "head_dim is 12, expected a multiple of 8 from 8 to 576 (backend cpu)"},
           {16, 584, "v_head_dim is 584, expected a multiple of 8 from 8 to 576 (backend cpu)"}}) {
    ProblemShape shape;
    shape.head_dim = dim;
    shape.v_head_dim = v_dim;
    const Problem problem(shape, 1);
    Partial partial = problem.Identity();
    const absl::Status status = cpu->Attend(problem.Args(&problem.all(), &partial));
    CHECK(status.code() == absl::StatusCode::kInvalidArgument);
    CHECK(std::string(status.message()) == text);
  }
}

TEST_CASE("unknown backends are refused with the known ones") {
  CHECK(MakeBackend("gpu\x01", 0).status().message() ==
        "backend is 'gpu\\x01', expected one of auto, cpu, reference");
  CHECK(MakeBackend("cpu", -1).status().message() ==
        "threads is -1, expected 0 (one per core) or more");
}

}  // namespace annulus
