// What every backend owes its callers beside right answers: what it reads, when it stops, what it
// refuses and how.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "attention/backend.h"
#include "tests/attention/contenders.h"
#include "tests/attention/problem.h"
#include "tests/catch.h"

namespace annulus {
namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

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

TEST_CASE("a row that sees no key stays empty beside one that does") {
  ProblemShape shape;
  shape.kv_tokens = 300;
  shape.q_ranges = {{10, 11}, {299, 300}};
  shape.pattern = "causal";
  const Problem problem(shape, 3);
  const BlockSet late = BlockSet::Range(1, 4);
  ForEachBackend([&](Backend* backend) {
    Partial partial = problem.Identity();
    REQUIRE(backend->Attend(problem.Args(&late, &partial)).ok());
    const PartialView row = partial.view().Rows(0, 1);
    CHECK(std::all_of(row.out, row.out + row.heads * row.v_head_dim,
                      [](float value) { return value == 0; }));
    CHECK(row.lse[0] == -std::numeric_limits<float>::infinity());
    CHECK(std::isfinite(partial.view().lse[partial.view().heads]));
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
    refused(args, "q dtype: f16; expected f32 or that of the keys, f32");
    args = good;
    args.q.dim = 24;
    refused(args, "q head_dim: 24; expected 16, as in the keys");
    args = good;
    args.q.tokens = 99;
    refused(args, "number of query rows: 99; expected 100, the sum of the query ranges");
    args = good;
    args.q_ranges = {{50, 100}, {0, 50}};
    refused(args,
            "query range: [0, 50); expected ranges that ascend and do not overlap, the next "
            "from 100 on");
    args = good;
    args.group = 0;
    refused(args, "group: 0; expected at least 1");
    args = good;
    args.heads = {1, 2};
    refused(args,
            "heads: [1, 3); expected query heads of the table's KV heads [0, 2) with group 1, "
            "among the pattern's 2 KV heads");
    args = good;
    args.scale = std::nanf("");
    refused(args, "scale: nan; expected a finite number");
    args = good;
    args.into.v_head_dim = 8;
    refused(args, "partial to merge into: [100, 2, 8]; expected [100, 2, 16]");
  });
}

TEST_CASE("dims outside a backend's capabilities are refused") {
  std::unique_ptr<Backend> cpu = *MakeBackend("auto", 1);
  CHECK(cpu->capabilities().name == "cpu");
  for (const auto& [dim, v_dim, text] : std::vector<std::tuple<int, int, std::string>>{
           {12, 16, "head_dim: 12; expected a multiple of 8 from 8 to 576 (backend cpu)"},
           {16, 584, "v_head_dim: 584; expected a multiple of 8 from 8 to 576 (backend cpu)"}}) {
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
  const std::string known = BuiltWithCuda()
                                ? "auto, cpu, cuda, reference"
                                : "auto, cpu, reference (this program has no CUDA in it)";
  CHECK(MakeBackend("gpu\x01", 0).status().message() ==
        "backend: 'gpu\\x01'; expected one of " + known);
  CHECK(MakeBackend("cpu", -1).status().message() ==
        "threads: -1; expected 0 (one per core) to 4096");
}

}  // namespace annulus
