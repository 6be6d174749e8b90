// Step, Fork, Truncate, repetitions and KV-efficient contexts over whole clusters in threads,
// against the oracle.
#include <atomic>
#include <thread>

#include "base/rng.h"
#include "runtime/context/layout.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

StepRequest StepOf(ContextId id, const LayerKv& kv, int64_t start, const TensorView& q) {
  return kv.Step(id, 0, start, q);
}

AttendRequest AttendOf(ContextId id, int64_t kv_len, const TensorView& q) {
  AttendRequest request;
  request.context = id;
  request.q = q;
  request.kv_len = kv_len;
  request.q_start = kv_len - q.tokens;
  return request;
}

double ErrorOf(const StepResult& result, const ContextSpec& spec, const LayerKv& kv,
               const TensorView& q, const std::string& pattern) {
  return test::WorstError(result.out, result.lse,
                          test::Oracle(spec, kv, q, result.tokens, pattern));
}

TEST_CASE("Steps of many contexts agree with the oracle, whatever the placement") {
  const int world = GENERATE(1, 3, 6);
  CAPTURE(world);
  LocalCluster cluster({.workers = world});
  Service& service = cluster.service();
  Rng rng(static_cast<uint64_t>(world));
  struct One {
    ContextSpec spec;
    LayerKv kv;
    ContextId id;
    int64_t tokens;
    std::string pattern;
  };
  std::vector<One> contexts;
  const std::string patterns[] = {
      "causal",  "window(70)", "s2(64, 1, 2)", "full", "heads(0: causal; 1: sink(3) | window(1))",
      "sink(70)"};
  for (int i = 0; i < 6; ++i) {
    ContextSpec spec = test::SmallF32Spec();
    spec.placement = static_cast<Placement>(i % 3);
    spec.v_is_k_prefix = i == 3;
    if (i % 2 == 0) spec.patterns = {patterns[i]};
    if (i == 5) {
      spec.partition = {PartitionKind::kZigzag, 1};
      spec.tokens_expected = 400;
    }
    LayerKv kv(spec, 400, rng);
    const ContextId id = service.Call(spec, {})->id;
    const int64_t tokens = i == 0 ? 0 : rng.Between(1, 300);
    if (tokens > 0) REQUIRE(service.Call(kv.Append(id, 0, 0, tokens), {}).ok());
    contexts.push_back({spec, std::move(kv), id, tokens, patterns[i]});
  }
  for (int round = 0; round < 20; ++round) {
    std::vector<StepRequest> steps;
    std::vector<Tensor> queries;
    for (One& one : contexts) {
      const int64_t n = round % 4 == 3 ? rng.Between(1, 5) : 1;
      queries.push_back(test::RandomTensor(n, one.spec.heads, one.spec.head_dim, rng));
      steps.push_back(StepOf(one.id, one.kv, one.tokens, queries.back()));
      if (one.spec.patterns.empty()) steps.back().pattern = one.pattern;
    }
    const auto results = test::Step(service, steps);
    REQUIRE(results.size() == steps.size());
    for (size_t i = 0; i < steps.size(); ++i) {
      One& one = contexts[i];
      INFO("round " << round << " context " << i << " " << results[i].status());
      REQUIRE(results[i].ok());
      one.tokens += queries[i].tokens();
      CHECK(results[i]->tokens == one.tokens);
      CHECK(ErrorOf(*results[i], one.spec, one.kv, queries[i], one.pattern) < 1e-5);
    }
  }
}

TEST_CASE("Steps over any number of workers equal the whole, and four partials of them come home") {
  constexpr int64_t kTokens = 64 * 18;
  Rng rng(8);
  ContextSpec spec = test::SmallF32Spec();
  const LayerKv kv(spec, kTokens + 3, rng);
  const Tensor q = test::RandomTensor(3, spec.heads, spec.head_dim, rng);
  for (int world = 1; world <= 16; ++world) {
    CAPTURE(world);
    LocalCluster cluster({.workers = world});
    Service& service = cluster.service();
    std::vector<StepRequest> steps;
    for (const Placement placement : {Placement::kTokens, Placement::kMesh, Placement::kHeads}) {
      spec.placement = placement;
      // Contexts begin at workers of their own.
      for (int i = 0; i < 2; ++i) {
        const ContextId id = service.Call(spec, {})->id;
        REQUIRE(service.Call(kv.Append(id, 0, 0, kTokens), {}).ok());
        steps.push_back(StepOf(id, kv, kTokens, q));
      }
    }
    const auto bytes = [&] { return cluster.service().fabric_counters().bytes_received; };
    const uint64_t before = bytes();
    const auto results = test::Step(service, steps);
    const auto partial = static_cast<uint64_t>(3 * spec.heads * (spec.v_head_dim + 1) * 4);
    CHECK(bytes() - before <= std::min(world, 4) * partial * steps.size());
    for (const auto& result : results) {
      REQUIRE(result.ok());
      CHECK(ErrorOf(*result, spec, kv, q, "causal") < 1e-6);
    }
  }
}

TEST_CASE("An item that fails at one of many workers leaves the others of its batch alone") {
  constexpr int kWorkers = 8;
  const ContextSpec spec = test::SmallF32Spec();
  // Room for two blocks of each of two contexts, and one more of one of them.
  LocalCluster cluster({.workers = kWorkers, .kv_bytes_limit = 5 * 2 * PageBytes(spec)});
  Service& service = cluster.service();
  Rng rng(9);
  const int64_t tokens = 2 * kWorkers * 64;
  const LayerKv kv(spec, 2 * tokens, rng);
  const Tensor q = test::RandomTensor(1, spec.heads, spec.head_dim, rng);
  ContextId ids[2] = {};
  int64_t held[2] = {tokens, tokens};
  for (ContextId& id : ids) {
    id = service.Call(spec, {})->id;
    REQUIRE(service.Call(kv.Append(id, 0, 0, tokens), {}).ok());
  }
  // Both grow by a block in each round, at some worker each: once one is full, one fails there.
  int refused = 0;
  for (int round = 0; round < 2 * kWorkers; ++round) {
    const std::vector<StepRequest> steps = {StepOf(ids[0], kv, held[0], q),
                                            StepOf(ids[1], kv, held[1], q)};
    const auto results = test::Step(service, steps);
    for (size_t i = 0; i < 2; ++i) {
      INFO("round " << round << " item " << i << " " << results[i].status());
      if (!results[i].ok()) {
        CHECK(absl::IsResourceExhausted(results[i].status()));
        ++refused;
        continue;
      }
      CHECK(ErrorOf(*results[i], spec, kv, q, "causal") < 1e-6);
      ++held[i];
      CHECK(service.Call(DescribeRequest{ids[i]}, {})->tokens[0] == held[i]);
      const AppendRequest rest = kv.Append(ids[i], 0, held[i], 63);
      REQUIRE(service.Call(rest, {}).ok());
      held[i] += 63;
    }
  }
  CHECK(refused >= 2);
}

TEST_CASE("An item that fails leaves the others of its batch alone") {
  const ContextSpec spec = test::SmallF32Spec();
  // Room for four blocks on each worker.
  LocalCluster cluster({.workers = 2, .kv_bytes_limit = 4 * 2 * PageBytes(spec)});
  Service& service = cluster.service();
  Rng rng(2);
  LayerKv kv(spec, 1000, rng);
  const ContextId good = service.Call(spec, {})->id;
  const ContextId full = service.Call(spec, {})->id;
  REQUIRE(service.Call(kv.Append(good, 0, 0, 10), {}).ok());
  REQUIRE(service.Call(kv.Append(full, 0, 0, 7 * 64), {}).ok());
  Tensor q = test::RandomTensor(1, 4, 16, rng);
  Tensor bad_q = test::RandomTensor(1, 4, 16, rng);
  bad_q.f32()[3] = NAN;
  std::vector<StepRequest> steps = {StepOf(good, kv, 10, q), StepOf(full, kv, 7 * 64, q)};
  // Forks, which take no room of their own.
  StepRequest nan = StepOf(service.Call(ForkRequest{full, {}}, {})->id, kv, 7 * 64, bad_q);
  nan.k = nan.v = {};
  steps.push_back(nan);
  StepRequest unreadable = nan;
  unreadable.context = service.Call(ForkRequest{full, {}}, {})->id;
  unreadable.q = q;
  unreadable.pattern = "windows(3)";
  steps.push_back(unreadable);
  const auto results = test::Step(service, steps);
  REQUIRE(results[0].ok());
  CHECK(ErrorOf(*results[0], spec, kv, q, "causal") < 1e-5);
  CHECK(absl::IsResourceExhausted(results[1].status()));
  CHECK(absl::IsInvalidArgument(results[2].status()));
  CHECK(absl::IsInvalidArgument(results[3].status()));
  CHECK(service.Call(DescribeRequest{good}, {})->tokens[0] == 11);
  CHECK(service.Call(DescribeRequest{full}, {})->tokens[0] == 7 * 64);
  // What the worker with room had stored of it is gone too.
  CHECK(service.Call(AttendOf(full, 7 * 64, q), {}).ok());
  CHECK(service.Call(ReleaseRequest{good}, {}).ok());
  const auto again = test::Step(service, {&steps[1], 1});
  REQUIRE(again[0].ok());
  CHECK(ErrorOf(*again[0], spec, kv, q, "causal") < 1e-5);

  const std::vector<StepRequest> many(1025, steps[0]);
  CHECK(absl::IsInvalidArgument(test::Step(service, many).back().status()));
  CHECK(test::Step(service, {}).empty());
}

TEST_CASE("Retries from many threads append every token once") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  const ContextSpec spec = test::SmallF32Spec();
  Rng rng(3);
  const LayerKv kv(spec, 200, rng);
  const ContextId id = service.Call(spec, {})->id;
  const Tensor q = test::RandomTensor(1, 4, 16, rng);
  std::atomic<int> wrong = 0;
  for (int64_t t = 0; t < 60; ++t) {
    std::vector<std::thread> tries;
    for (int c = 0; c < 3; ++c) {
      tries.emplace_back([&, c] {
        StepRequest step = StepOf(id, kv, t, q);
        step.key = {9, static_cast<uint64_t>(t) + 1};
        while (true) {
          if (c == 2) {
            AppendRequest append = kv.Append(id, 0, t, 1);
            append.key = step.key;
            const auto result = service.Call(append, {});
            if (absl::IsUnavailable(result.status())) continue;
            wrong += !result.ok() || result->tokens != t + 1;
            return;
          }
          const auto result = std::move(test::Step(service, {&step, 1})[0]);
          if (absl::IsUnavailable(result.status())) continue;
          wrong += !result.ok() || result->tokens != t + 1 ||
                   !(ErrorOf(*result, spec, kv, q, "causal") < 1e-5);
          return;
        }
      });
    }
    for (std::thread& one : tries) one.join();
  }
  CHECK(wrong == 0);
  CHECK(service.Call(DescribeRequest{id}, {})->tokens[0] == 60);
}

TEST_CASE("Forks go their own ways, and a truncated parent does not hurt them") {
  const int world = GENERATE(1, 3);
  CAPTURE(world);
  LocalCluster cluster({.workers = world});
  Service& service = cluster.service();
  Rng rng(4);
  for (int placement = 0; placement < 3; ++placement) {
    CAPTURE(placement);
    ContextSpec spec = test::SmallF32Spec();
    spec.placement = static_cast<Placement>(placement);
    const LayerKv kv(spec, 300, rng);
    const LayerKv other(spec, 300, rng);
    const ContextId parent = service.Call(spec, {})->id;
    REQUIRE(service.Call(kv.Append(parent, 0, 0, 150), {}).ok());
    const int64_t bytes = service.Call(DescribeRequest{parent}, {})->kv_bytes;
    CHECK(bytes == service.Call(DescribeRequest{parent}, {})->dense_kv_bytes);
    const absl::StatusOr<ContextInfo> whole = service.Call(ForkRequest{parent, {}}, {});
    const absl::StatusOr<ContextInfo> half = service.Call(ForkRequest{parent, 70}, {});
    REQUIRE((whole.ok() && half.ok()));
    CHECK(whole->tokens[0] == 150);
    CHECK(half->tokens[0] == 70);
    CHECK(whole->kv_bytes == bytes);
    REQUIRE(service.Call(TruncateRequest{parent, 140}, {}).ok());
    // Each writes the block that all share, differently.
    REQUIRE(service.Call(other.Append(parent, 0, 140, 60), {}).ok());
    REQUIRE(service.Call(kv.Append(whole->id, 0, 150, 100), {}).ok());
    REQUIRE(service.Call(kv.Append(half->id, 0, 70, 230), {}).ok());
    const Tensor q = test::RandomTensor(3, 4, 16, rng);
    const auto check = [&](ContextId id, const LayerKv& expected, int64_t tokens) {
      const auto answer = service.Call(AttendOf(id, tokens, q), {});
      REQUIRE(answer.ok());
      CHECK(test::WorstError(answer->out, answer->lse,
                             test::Oracle(spec, expected, q, tokens, "causal")) < 1e-5);
    };
    check(whole->id, kv, 250);
    check(half->id, kv, 300);
    LayerKv mixed(spec, 200, rng);
    for (const auto& [to, first, second] :
         {std::tuple{&mixed.k, &kv.k, &other.k}, std::tuple{&mixed.v, &kv.v, &other.v}}) {
      const int64_t row = to->heads() * to->dim();
      std::copy_n(first->f32(), 140 * row, to->f32());
      std::copy_n(second->f32() + 140 * row, 60 * row, to->f32() + 140 * row);
    }
    check(parent, mixed, 200);
    REQUIRE(service.Call(ReleaseRequest{parent}, {}).ok());
    check(whole->id, kv, 250);
    REQUIRE(service.Call(ReleaseRequest{whole->id}, {}).ok());
    check(half->id, kv, 300);
    REQUIRE(service.Call(ReleaseRequest{half->id}, {}).ok());
    for (int w = 0; w < world; ++w) CHECK(cluster.worker(w).Snapshot().kv_bytes == 0);
  }
}

TEST_CASE("A KV-efficient context answers as a dense one and refuses what it let go of") {
  const int world = GENERATE(1, 3);
  CAPTURE(world);
  LocalCluster cluster({.workers = world});
  Service& service = cluster.service();
  Rng rng(5);
  for (const char* pattern : {"s2(64, 2, 4, step=1)", "window(100) | sink(10)", "window(64)"}) {
    CAPTURE(pattern);
    ContextSpec spec = test::SmallF32Spec();
    spec.patterns = {pattern};
    spec.placement = static_cast<Placement>(rng.Below(3));
    const LayerKv kv(spec, 1500, rng);
    const ContextId dense = service.Call(spec, {})->id;
    spec.kv_efficient = true;
    const ContextId lean = service.Call(spec, {})->id;
    for (int64_t start = 0; start < 1400; start += 100) {
      REQUIRE(service.Call(kv.Append(dense, 0, start, 100), {}).ok());
      REQUIRE(service.Call(kv.Append(lean, 0, start, 100), {}).ok());
      for (const std::optional<PlanKind> plan :
           {std::optional<PlanKind>(), {PlanKind::kGroupCast}, {PlanKind::kPassQ}}) {
        const Tensor q = test::RandomTensor(rng.Between(1, 100), 4, 16, rng);
        AttendRequest request = AttendOf(dense, start + 100, q);
        request.plan = plan;
        const auto expected = service.Call(request, {});
        request.context = lean;
        const auto answer = service.Call(request, {});
        INFO(answer.status());
        REQUIRE((expected.ok() && answer.ok()));
        const Partial oracle = test::Oracle(spec, kv, q, start + 100, pattern);
        CHECK(test::WorstError(answer->out, answer->lse, oracle) < 1e-5);
      }
    }
    const ContextInfo info = *service.Call(DescribeRequest{lean}, {});
    CHECK(info.kv_bytes < info.dense_kv_bytes * 6 / 10);
    CHECK(info.dense_kv_bytes == service.Call(DescribeRequest{dense}, {})->kv_bytes);
    const Tensor q = test::RandomTensor(1, 4, 16, rng);
    AttendRequest evicted = AttendOf(lean, 1400, q);
    evicted.pattern = "causal";
    absl::Status refused = service.Call(evicted, {}).status();
    CHECK(absl::IsInvalidArgument(refused));
    CHECK(std::string(refused.message()).find("layer 0 KV head ") != std::string::npos);
    CHECK(std::string(refused.message()).find("let go of block ") != std::string::npos);
    CHECK(absl::IsInvalidArgument(service.Call(AttendOf(lean, 500, q), {}).status()));
    CHECK(absl::IsInvalidArgument(service.Call(TruncateRequest{lean, 700}, {}).status()));
    CHECK(absl::IsInvalidArgument(service.Call(ForkRequest{lean, 700}, {}).status()));
    evicted = AttendOf(lean, 1400, q);
    evicted.plan = PlanKind::kRing;
    CHECK(absl::IsInvalidArgument(service.Call(evicted, {}).status()));
    StepRequest step = StepOf(lean, kv, 1400, q);
    step.pattern = "full";
    CHECK(absl::IsInvalidArgument(test::Step(service, {&step, 1})[0].status()));
    step.pattern.clear();
    CHECK(service.Call(TruncateRequest{lean, 1390}, {}).ok());
    const absl::StatusOr<ContextInfo> fork = service.Call(ForkRequest{lean, {}}, {});
    REQUIRE(fork.ok());
    for (const ContextId id : {lean, fork->id}) {
      for (int64_t t = 1390; t < 1480; ++t) {
        step = StepOf(id, kv, t, q);
        const auto result = std::move(test::Step(service, {&step, 1})[0]);
        REQUIRE(result.ok());
        if (t % 9 == 0) CHECK(ErrorOf(*result, spec, kv, q, pattern) < 1e-5);
      }
    }
    for (const ContextId id : {dense, lean, fork->id})
      REQUIRE(service.Call(ReleaseRequest{id}, {}).ok());
  }
  for (int w = 0; w < world; ++w) CHECK(cluster.worker(w).Snapshot().kv_bytes == 0);
}

}  // namespace
}  // namespace annulus
