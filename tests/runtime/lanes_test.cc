// Short work beside long work, through coordinator and workers.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

constexpr int64_t kPrefillTokens = 16 << 10;
constexpr int64_t kQueries = 1024;
constexpr int64_t kDecodeTokens = 128;

ContextSpec Spec() {
  ContextSpec spec;
  spec.layers = 2;
  spec.heads = spec.kv_heads = 4;
  spec.head_dim = spec.v_head_dim = 64;
  return spec;
}

// Two workers, and one context that is long.
struct Beside {
  Beside() : cluster({.workers = 2, .backend = "cpu"}) {
    prefilled = Create(kPrefillTokens);
    q = test::RandomTensor(kQueries, spec.heads, spec.head_dim, rng);
  }

  ContextId Create(int64_t tokens) {
    const ContextId id = service().Call(spec, {})->id;
    kv = LayerKv(spec, tokens, rng);
    REQUIRE(service().Call(kv.Append(id, 0, 0, tokens), {}).ok());
    return id;
  }
  absl::StatusOr<AttendResult> Prefill(const CallContext& call = {}) {
    AttendRequest request;
    request.context = prefilled;
    request.q_start = kPrefillTokens - kQueries;
    request.kv_len = kPrefillTokens;
    request.q = q;
    request.pattern = "full";
    return service().Call(request, call);
  }
  StepRequest Step(ContextId context, int64_t start) {
    StepRequest request = {};
    request.context = context;
    request.start = start;
    request.k = request.v = request.q = q.view().Tokens(start % kQueries, 1);
    return request;
  }
  Service& service() { return cluster.service(); }

  const ContextSpec spec = Spec();
  Rng rng{1};
  LayerKv kv;
  LocalCluster cluster;
  ContextId prefilled = 0;
  Tensor q;
};

bool SameBytes(const Tensor& a, const Tensor& b) {
  const TensorView x = a, y = b;
  return x.size() == y.size() &&
         std::memcmp(x.data, y.data, static_cast<size_t>(x.size()) * 4) == 0;
}

TEST_CASE("Steps, appends and orders end beside a prefill, whose answer is what it is alone") {
  Beside beside;
  const ContextId decoded = beside.Create(kDecodeTokens);
  const absl::StatusOr<AttendResult> alone = beside.Prefill();
  REQUIRE(alone.ok());
  std::atomic<int> prefills = 0;
  std::atomic<bool> over = false;
  std::vector<absl::Status> failed;
  bool same = true;
  std::thread caller([&] {
    while (!over) {
      const absl::StatusOr<AttendResult> result = beside.Prefill();
      if (!result.ok()) failed.push_back(result.status());
      same = same && result.ok() && SameBytes(result->out, alone->out) &&
             SameBytes(result->lse, alone->lse);
      ++prefills;
    }
  });
  while (prefills < 1) absl::SleepFor(absl::Milliseconds(1));
  const LayerKv other(beside.spec, 100, beside.rng);
  int steps = 0;
  const int before = prefills;
  for (; prefills < before + 3; ++steps) {
    const std::vector<StepRequest> batch = {beside.Step(decoded, kDecodeTokens + steps)};
    const auto results = test::Step(beside.service(), batch);
    if (!results[0].ok()) failed.push_back(results[0].status());
    // Of another layer of the context that is attended, and orders on others.
    if (steps % 2 == 0 && steps < 100) {
      failed.push_back(
          beside.service().Call(other.Append(beside.prefilled, 1, steps / 2, 1), {}).status());
    }
    const absl::StatusOr<ContextInfo> fork =
        beside.service().Call(ForkRequest{.context = decoded, .tokens = {}}, {});
    failed.push_back(fork.status());
    if (fork.ok()) failed.push_back(beside.service().Call(ReleaseRequest{fork->id}, {}).status());
  }
  over = true;
  caller.join();
  std::erase(failed, absl::OkStatus());
  CHECK(failed.empty());
  if (!failed.empty()) WARN(failed[0]);
  CHECK(same);
  // Behind the prefills it would be one for each.
  CHECK(steps >= 12);
  WARN(steps << " steps beside 3 prefills");
}

TEST_CASE("What changes a layer waits for the attend that reads it, and no cancel is missed") {
  Beside beside;
  std::atomic<bool> cancelled = false;
  CallContext call;
  call.cancelled = [&] { return cancelled.load(); };
  for (int round = 0; round < 3; ++round) {
    cancelled = false;
    absl::Status status;
    absl::Time ended = absl::InfiniteFuture();
    std::thread caller([&] {
      status = beside.Prefill(call).status();
      ended = absl::Now();
    });
    absl::SleepFor(absl::Milliseconds(5));
    if (round > 0) cancelled = true;
    const LayerKv one(beside.spec, kPrefillTokens + 3, beside.rng);
    CHECK(
        beside.service().Call(one.Append(beside.prefilled, 0, kPrefillTokens + round, 1), {}).ok());
    caller.join();
    CHECK((status.ok() || absl::IsCancelled(status)));
  }
}

TEST_CASE("Prefills of many contexts beside steps all end right") {
  Beside beside;
  constexpr int kCallers = 12;  // more than run at once
  const absl::StatusOr<AttendResult> alone = beside.Prefill();
  REQUIRE(alone.ok());
  const ContextId decoded = beside.Create(kDecodeTokens);
  std::vector<ContextId> forks;
  for (int i = 0; i < kCallers; ++i) {
    const auto fork =
        beside.service().Call(ForkRequest{.context = beside.prefilled, .tokens = {}}, {});
    REQUIRE(fork.ok());
    forks.push_back(fork->id);
  }
  std::atomic<int> right = 0;
  std::vector<std::thread> callers;
  for (const ContextId fork : forks) {
    callers.emplace_back([&, fork] {
      AttendRequest request;
      request.context = fork;
      request.q_start = kPrefillTokens - kQueries;
      request.kv_len = kPrefillTokens;
      request.q = beside.q;
      request.pattern = "full";
      const absl::StatusOr<AttendResult> result = beside.service().Call(request, {});
      right += result.ok() && SameBytes(result->out, alone->out) ? 1 : 0;
      // Its blocks are shared until now.
      AppendRequest append;
      append.context = fork;
      append.start = kPrefillTokens;
      append.k = append.v = beside.q.view().Tokens(0, 70);
      right += beside.service().Call(append, {}).ok() ? 1 : 0;
      right += beside.service().Call(ReleaseRequest{fork}, {}).ok() ? 1 : 0;
    });
  }
  for (int64_t i = 0; right < 3 * kCallers && i < 2000; ++i) {
    const std::vector<StepRequest> batch = {beside.Step(decoded, kDecodeTokens + i)};
    REQUIRE(test::Step(beside.service(), batch)[0].ok());
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(right == 3 * kCallers);
  const absl::StatusOr<AttendResult> after = beside.Prefill();
  REQUIRE(after.ok());
  CHECK(SameBytes(after->out, alone->out));
}

}  // namespace
}  // namespace annulus
