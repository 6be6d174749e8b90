// Whole clusters in threads: every plan, placement and number of workers against the oracle, and
// what happens when things go wrong.
#include <atomic>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/reliability.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

// kErrorWithinMs: of every call, once a worker is lost. kLongTokens: attention of so many queries
// to as many keys takes some seconds. Instrumented programs take many times as long.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kErrorWithinMs = 5000;
constexpr int64_t kLongTokens = 2000;
#else
constexpr int kErrorWithinMs = 2000;
constexpr int64_t kLongTokens = 6000;
#endif

using test::LayerKv;
using test::LocalCluster;

AttendRequest Attend(ContextId context, const TensorView& q, int64_t kv_len,
                     const std::string& pattern, std::optional<PlanKind> plan) {
  AttendRequest request;
  request.context = context;
  request.layer = 1;
  request.q_start = kv_len - q.tokens;
  request.kv_len = kv_len;
  request.q = q;
  request.pattern = pattern;
  request.plan = plan;
  return request;
}

// Appends [start, end) of layer 1.
absl::Status Upload(Service& service, ContextId context, const LayerKv& kv, int64_t start,
                    int64_t end) {
  return service.Call(kv.Append(context, 1, start, end - start), {}).status();
}

std::string RandomPattern(Rng& rng, int64_t length) {
  switch (rng.Below(6)) {
    case 0:
      return "full";
    case 1:
      return "window(100) | sink(3)";
    case 2:
      return "s2(64, 1, 2)";
    case 3:
      return "heads(0: causal; 1: window(70, 5))";
    case 4:
      return absl::StrCat("causal & docs(", length / 2 + 1, ", ", length - length / 2 - 1, ")");
    default:
      return "causal";
  }
}

TEST_CASE("Every plan, placement and number of workers agrees with the oracle") {
  const int world = GENERATE(1, 2, 3, 4, 7);
  const bool fake_device = world == 3;
  CAPTURE(world, fake_device);
  LocalCluster cluster({.workers = world, .fake_device = fake_device});
  Service& service = cluster.service();
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    CAPTURE(seed);
    Rng rng(seed * 100 + static_cast<uint64_t>(world));
    ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
    spec.placement = static_cast<Placement>(seed % 3);
    spec.v_is_k_prefix = seed % 4 == 3;
    const int64_t length = seed == 1 ? 20 : rng.Between(2, 600);
    if (seed % 5 == 4) {
      spec.partition.kind = seed % 2 == 0 ? PartitionKind::kZigzag : PartitionKind::kContiguous;
      spec.tokens_expected = length + rng.Between(0, 200);
    }
    const LayerKv kv(spec, length, rng);
    const absl::StatusOr<ContextInfo> context = service.Call(spec, {});
    REQUIRE(context.ok());
    for (int64_t start = 0; start < length;) {
      const int64_t end = std::min(length, start + rng.Between(1, 200));
      REQUIRE(Upload(service, context->id, kv, start, end).ok());
      start = end;
    }
    for (int trial = 0; trial < 8; ++trial) {
      const int64_t kv_len = trial < 6 ? length : rng.Between(1, length);
      const int64_t n = trial % 2 == 0 ? 1 : rng.Between(1, kv_len);
      const Tensor q = test::RandomTensor(n, spec.heads, spec.head_dim, rng);
      const std::string pattern = RandomPattern(rng, kv_len);
      std::optional<PlanKind> plan;
      if (trial < 6) plan = kPlanKinds[trial];
      INFO("plan " << (plan ? std::string(Name(*plan)) : "auto") << " pattern " << pattern
                   << " kv_len " << kv_len << " of " << length << " q " << n);
      absl::StatusOr<AttendResult> answer =
          service.Call(Attend(context->id, q, kv_len, pattern, plan), {});
      INFO(answer.status());
      REQUIRE(answer.ok());
      CHECK(test::WorstError(answer->out, answer->lse, test::Oracle(spec, kv, q, kv_len, pattern)) <
            1e-5);
      CHECK(answer->epoch == context->epoch);
      CHECK(answer->stats.bytes_moved == answer->stats.planned_bytes);
      if (plan) CHECK(answer->stats.plan == Name(*plan));
    }
    REQUIRE(service.Call(ReleaseRequest{context->id}, {}).ok());
    CHECK(absl::IsNotFound(service.Call(DescribeRequest{context->id}, {}).status()));
  }
  for (int i = 0; i < world; ++i) CHECK(cluster.worker(i).Snapshot().kv_bytes == 0);
}

TEST_CASE("A long pattern travels apart from its header") {
  LocalCluster cluster({.workers = 2});
  const ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  Rng rng(5);
  const LayerKv kv(spec, 200, rng);
  const ContextId id = cluster.service().Call(spec, {})->id;
  REQUIRE(Upload(cluster.service(), id, kv, 0, 200).ok());
  const std::string pattern = absl::StrCat("causal & docs(1", std::string(4000, ' '), ",199)");
  const Tensor q = test::RandomTensor(70, spec.heads, spec.head_dim, rng);
  const auto answer = cluster.service().Call(Attend(id, q, 200, pattern, PlanKind::kPassQ), {});
  INFO(answer.status());
  REQUIRE(answer.ok());
  CHECK(test::WorstError(answer->out, answer->lse, test::Oracle(spec, kv, q, 200, pattern)) < 1e-5);
}

TEST_CASE("A full worker refuses an append whole, and a smaller one still fits") {
  // Room for three blocks on each worker, of two heads each.
  const ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  LocalCluster cluster({.workers = 2, .kv_bytes_limit = 3 * 2 * 64 * 24 * 4});
  Service& service = cluster.service();
  Rng rng(6);
  const LayerKv kv(spec, 512, rng);
  const ContextId id = service.Call(spec, {})->id;
  REQUIRE(Upload(service, id, kv, 0, 200).ok());
  const absl::Status refused = Upload(service, id, kv, 200, 512);
  CHECK(absl::IsResourceExhausted(refused));
  CHECK(std::string(refused.message()).find("kv_bytes_limit") != std::string::npos);
  CHECK(service.Call(DescribeRequest{id}, {})->tokens[1] == 200);
  CHECK(service.Call(DescribeRequest{id}, {})->kv_bytes == 4 * 2 * 64 * 24 * 4);
  CHECK(Upload(service, id, kv, 200, 384).ok());
  const Tensor q = test::RandomTensor(3, spec.heads, spec.head_dim, rng);
  const auto answer = service.Call(Attend(id, q, 384, "causal", std::nullopt), {});
  REQUIRE(answer.ok());
  CHECK(test::WorstError(answer->out, answer->lse, test::Oracle(spec, kv, q, 384, "causal")) <
        1e-5);
  CHECK(service.Call(ReleaseRequest{id}, {}).ok());
  const ContextId next = service.Call(spec, {})->id;
  CHECK(Upload(service, next, kv, 0, 384).ok());
}

TEST_CASE("A worker killed under load: right answers or errors, then survivors serve") {
  LocalCluster cluster({.workers = 3});
  Service& service = cluster.service();
  const ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  Rng rng(7);
  const LayerKv kv(spec, 500, rng);
  const ContextId id = service.Call(spec, {})->id;
  REQUIRE(Upload(service, id, kv, 0, 500).ok());
  const Tensor q = test::RandomTensor(100, spec.heads, spec.head_dim, rng);
  const Partial expected = test::Oracle(spec, kv, q, 500, "causal");

  std::atomic<int> right = 0, wrong = 0, odd_errors = 0;
  std::atomic<int64_t> slowest_ms = 0;
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c) {
    callers.emplace_back([&, c] {
      for (int i = 0;; ++i) {
        const absl::Time begin = absl::Now();
        const auto answer = service.Call(Attend(id, q, 500, "causal", kPlanKinds[(c + i) % 6]), {});
        if (!answer.ok()) {
          slowest_ms =
              std::max<int64_t>(slowest_ms, absl::ToInt64Milliseconds(absl::Now() - begin));
          if (!absl::IsUnavailable(answer.status()) && !absl::IsDataLoss(answer.status())) {
            ++odd_errors;
          }
          return;
        }
        const bool good = test::WorstError(answer->out, answer->lse, expected) < 1e-5;
        ++(good ? right : wrong);
      }
    });
  }
  while (right < 12) absl::SleepFor(absl::Milliseconds(1));
  cluster.Kill(1);
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
  CHECK(odd_errors == 0);
  CHECK(slowest_ms < kErrorWithinMs);

  const absl::Status lost = service.Call(Attend(id, q, 500, "causal", std::nullopt), {}).status();
  CHECK(absl::IsDataLoss(lost));
  CHECK(std::string(lost.message()).find("worker 2 (w1)") != std::string::npos);
  CHECK(absl::IsDataLoss(Upload(service, id, kv, 500, 500 - 1)));
  CHECK(service.Call(DescribeRequest{id}, {})->state == "lost");
  CHECK(service.Call(ReleaseRequest{id}, {}).ok());

  const absl::StatusOr<ContextInfo> again = service.Call(spec, {});
  REQUIRE(again.ok());
  REQUIRE(Upload(service, again->id, kv, 0, 500).ok());
  const auto answer = service.Call(Attend(again->id, q, 500, "causal", PlanKind::kRing), {});
  REQUIRE(answer.ok());
  CHECK(test::WorstError(answer->out, answer->lse, expected) < 1e-5);
  CHECK(answer->stats.workers.size() == 2);
}

TEST_CASE("Without workers, and after the coordinator, calls and workers say so") {
  LocalCluster cluster({.workers = 0});
  CHECK(absl::IsUnavailable(cluster.service().Call(test::SmallF32Spec(/*layers=*/2), {}).status()));
  cluster.AddWorker();
  CHECK(cluster.service().Call(test::SmallF32Spec(/*layers=*/2), {}).ok());
  CHECK(cluster.service().Call(StatusRequest(), {})->workers.at(0).state == "ready");
  cluster.KillCoordinator();
  const absl::Time begin = absl::Now();
  while (!cluster.worker(0).lost() && absl::Now() < begin + absl::Seconds(10)) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  CHECK(cluster.worker(0).lost());
  CHECK(cluster.worker(0).Snapshot().state == LinkState::kLost);
}

TEST_CASE("A call ends at its deadline and when it is cancelled, though the work is long") {
  LocalCluster cluster({.workers = 2});
  Service& service = cluster.service();
  ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  spec.head_dim = spec.v_head_dim = 64;
  Rng rng(8);
  const LayerKv kv(spec, kLongTokens, rng);
  const ContextId id = service.Call(spec, {})->id;
  REQUIRE(Upload(service, id, kv, 0, kLongTokens).ok());
  const Tensor q = test::RandomTensor(kLongTokens, spec.heads, spec.head_dim, rng);
  absl::Duration worst;
  for (const PlanKind plan : {PlanKind::kPassQ, PlanKind::kRing}) {
    const AttendRequest request = Attend(id, q, kLongTokens, "full", plan);
    CallContext call;
    const absl::Time deadline = absl::Now() + absl::Milliseconds(300);
    call.deadline = deadline;
    CHECK(absl::IsDeadlineExceeded(service.Call(request, call).status()));
    worst = std::max(worst, absl::Now() - deadline);
    CHECK(absl::Now() - deadline < absl::Milliseconds(250));

    std::atomic<bool> cancelled = false;
    call.deadline = absl::InfiniteFuture();
    call.cancelled = [&cancelled] { return cancelled.load(); };
    std::thread canceller([&cancelled] {
      absl::SleepFor(absl::Milliseconds(300));
      cancelled = true;
    });
    const absl::Time begin = absl::Now();
    CHECK(absl::IsCancelled(service.Call(request, call).status()));
    CHECK(absl::Now() - begin < absl::Milliseconds(800));
    canceller.join();
  }
  test::Tell({7, "a deadline passes in the middle of the work", "1 call of some seconds, 2 workers",
              "<= 50 ms over", absl::FormatDuration(worst), worst < absl::Milliseconds(50)});
  // The workers are free again soon: their work was stopped too.
  const Tensor one = test::RandomTensor(1, spec.heads, spec.head_dim, rng);
  CallContext call;
  call.deadline = absl::Now() + absl::Seconds(5);
  const absl::Status after =
      service.Call(Attend(id, one, kLongTokens, "causal", std::nullopt), call).status();
  CHECK(after == absl::OkStatus());
}

TEST_CASE("A context does not end while a call's tensors come, however long that takes") {
  LocalCluster cluster({.workers = 2});
  Coordinator& service = cluster.service();
  ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  spec.lease = 0.3;
  Rng rng(9);
  const LayerKv kv(spec, 100, rng);
  const ContextId id = service.Call(spec, {})->id;
  {
    const AppendRequest append = kv.Append(id, 1, 0, 100);
    const auto size = service.Check(append, {});
    REQUIRE(size.ok());
    absl::SleepFor(absl::Seconds(1));
    REQUIRE(service.Call(append, {}).ok());
  }
  const Tensor q = test::RandomTensor(10, spec.heads, spec.head_dim, rng);
  const AttendRequest attend = Attend(id, q, 100, "causal", PlanKind::kPassQ);
  {
    const auto size = service.Check(attend, {});
    REQUIRE(size.ok());
    absl::SleepFor(absl::Seconds(1));
    REQUIRE(service.Call(attend, {}).ok());
  }
  absl::SleepFor(absl::Seconds(1));
  CHECK(absl::IsNotFound(service.Check(attend, {}).status()));
}

TEST_CASE("A trace tells what every process did") {
  LocalCluster cluster({.workers = 2});
  const ContextSpec spec = test::SmallF32Spec(/*layers=*/2);
  Rng rng(9);
  const LayerKv kv(spec, 300, rng);
  const ContextId id = cluster.service().Call(spec, {})->id;
  REQUIRE(Upload(cluster.service(), id, kv, 0, 300).ok());
  const Tensor q = test::RandomTensor(10, spec.heads, spec.head_dim, rng);
  AttendRequest request = Attend(id, q, 300, "causal", PlanKind::kPassQ);
  CHECK(cluster.service().Call(request, {})->trace.empty());
  request.trace = true;
  const auto answer = cluster.service().Call(request, {});
  REQUIRE(answer.ok());
  std::map<std::string, int> spans;
  for (const TraceSpan& span : answer->trace) {
    ++spans[span.process];
    CHECK(span.begin_ns <= span.end_ns);
  }
  CHECK(spans.size() == 3);
  CHECK(spans["coordinator"] >= 4);
  CHECK(spans["worker 1"] >= 1);
  CHECK(spans["worker 2"] >= 1);
}

}  // namespace
}  // namespace annulus
