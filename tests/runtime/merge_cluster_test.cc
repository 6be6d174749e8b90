// Steps whose partials are merged among workers in threads, many callers at once.
#include <atomic>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "base/rng.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/local_cluster.h"

namespace annulus {
namespace {

using test::LayerKv;
using test::LocalCluster;

constexpr int kWorkers = 7;
constexpr int64_t kTokens = 64 * kWorkers * 2;

// One caller, which steps a context of its own.
class Caller {
 public:
  Caller(LocalCluster& cluster, uint64_t seed, int replicas) : cluster_(cluster), rng_(seed) {
    spec_ = test::SmallF32Spec();
    spec_.replicas = replicas;
    kv_ = LayerKv(spec_, kTokens + 1000, rng_);
    id_ = service().Call(spec_, {})->id;
    REQUIRE(service().Call(kv_.Append(id_, 0, 0, kTokens), {}).ok());
    tokens_ = kTokens;
  }

  // Until told. Some calls are cancelled, others have too little time.
  void Run(const std::atomic<bool>& over) {
    for (int i = 0; !over && tokens_ < kTokens + 1000; ++i) {
      const Tensor q = test::RandomTensor(1, spec_.heads, spec_.head_dim, rng_);
      StepRequest step = kv_.Step(id_, 0, tokens_, q);
      step.key = {1 + static_cast<uint64_t>(id_), static_cast<uint64_t>(tokens_)};
      CallContext call;
      const uint64_t kind = rng_.Below(8);
      if (kind == 0) call.deadline = absl::Now() + absl::Microseconds(rng_.Between(0, 1000));
      const absl::Time cancel = absl::Now() + absl::Microseconds(rng_.Between(0, 1000));
      if (kind == 1) call.cancelled = [cancel] { return absl::Now() > cancel; };
      const auto result = std::move(test::Step(service(), {&step, 1}, call)[0]);
      if (result.ok()) {
        ++right_;
        const Partial whole = test::Oracle(spec_, kv_, q, tokens_ + 1, "causal");
        wrong_ += !(test::WorstError(result->out, result->lse, whole) < 1e-6);
        ++tokens_;
        continue;
      }
      const absl::Status& status = result.status();
      ++failed_;
      if (absl::IsDataLoss(status)) return;
      const bool own = (kind == 0 && absl::IsDeadlineExceeded(status)) ||
                       (kind == 1 && absl::IsCancelled(status));
      unexpected_ += !own && !absl::IsUnavailable(status);
      if (!own) absl::SleepFor(absl::Milliseconds(1));
    }
  }

  Service& service() { return cluster_.service(); }
  int right() const { return right_; }
  int wrong() const { return wrong_; }
  int failed() const { return failed_; }
  int unexpected() const { return unexpected_; }

 private:
  LocalCluster& cluster_;
  Rng rng_;
  ContextSpec spec_;
  LayerKv kv_;
  ContextId id_ = 0;
  int64_t tokens_ = 0;
  std::atomic<int> right_ = 0;
  int wrong_ = 0;
  int failed_ = 0;
  int unexpected_ = 0;
};

TEST_CASE("Steps of many callers merge among workers, of which one is lost, and all end right") {
  LocalCluster cluster({.workers = kWorkers});
  std::vector<std::unique_ptr<Caller>> callers;
  for (int i = 0; i < 6; ++i) {
    callers.push_back(std::make_unique<Caller>(cluster, 1 + static_cast<uint64_t>(i), 1 + i % 2));
  }
  std::atomic<bool> over = false;
  std::vector<std::thread> threads;
  for (const auto& caller : callers) {
    threads.emplace_back([&] { caller->Run(over); });
  }
  const auto await = [&](const Caller& caller, int steps) {
    const absl::Time end = absl::Now() + absl::Seconds(60);
    while (caller.right() < steps && absl::Now() < end) absl::SleepFor(absl::Milliseconds(1));
  };
  for (const auto& caller : callers) await(*caller, 20);
  cluster.Kill(3);
  // Those with copies go on without it.
  for (const size_t with_copies : {1, 3, 5}) {
    await(*callers[with_copies], callers[with_copies]->right() + 20);
  }
  over = true;
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < callers.size(); ++i) {
    CAPTURE(i);
    CHECK(callers[i]->wrong() == 0);
    CHECK(callers[i]->unexpected() == 0);
    CHECK(callers[i]->right() >= (i % 2 == 1 ? 40 : 20));
  }
}

}  // namespace
}  // namespace annulus
