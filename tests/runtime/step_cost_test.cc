// What a decode step costs beside its attention: the coordinator's packing and merging, the
// worker's storing and answering. Times are the best of many, which other load disturbs least.
#include <algorithm>

#include "absl/time/clock.h"
#include "base/rng.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/coordinator/calls/batch_call.h"
#include "runtime/worker/work_runner.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"

namespace annulus {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr absl::Duration kCostMax = absl::Milliseconds(50);
#else
constexpr absl::Duration kCostMax = absl::Microseconds(50);
#endif

// Coordinator and worker without the transport between them.
struct OneWorker {
  explicit OneWorker(const ContextSpec& spec) : store(int64_t{1} << 30) {
    ShardMap shards;
    shards.context = shards.storage_id = shards.epoch = 1;
    shards.spec = spec;
    shards.world = 1;
    shards.heads = HeadMapOf(spec, 1);
    shards.holders = {{.worker = 1, .rank = 0}};
    shards.retention = std::make_shared<const Retention>(Retention::Of(spec).value());
    map = std::make_shared<const ShardMap>(std::move(shards));
    ANNULUS_CHECK(store.Open(1, spec, 1, 0).ok());
  }

  absl::StatusOr<StepResult> Step(const StepRequest& request) {
    BatchCall work({CallItem(request)}, CallContext(), planner, Clock::Real());
    action::Admit admit{1, {1}, {{absl::OkStatus(), map, true, true, 0}}};
    absl::Time begin = absl::Now();
    PreparedCall prepared = work.Prepare(admit).value();
    absl::Duration coordinator = absl::Now() - begin;

    begin = absl::Now();
    WorkerTask task;
    task.body = wire::Decode(prepared.messages.at(0).message).value();
    task.payload = std::move(prepared.messages[0].message.payload);
    task.cancel = std::make_shared<std::atomic<bool>>(false);
    task.urgent = true;
    Message answer = std::move(runner.Run(task).messages.at(0));
    worker_best = std::min(worker_best, absl::Now() - begin);

    begin = absl::Now();
    const auto done = std::get<wire::WorkDone>(wire::Decode(answer).value());
    ANNULUS_CHECK(work.OnAnswer({0, done, std::move(answer.payload)}).ok());
    action::Finish finish;
    finish.items = {{absl::OkStatus(), 1, request.start + request.k.tokens}};
    absl::StatusOr<StepResult> result = work.TakeResult(0, finish);
    coordinator_best = std::min(coordinator_best, coordinator + (absl::Now() - begin));
    return result;
  }

  std::unique_ptr<Backend> backend = MakeBackend("cpu", 1).value();
  KvStore store;
  WorkRunner runner{store, *backend, Clock::Real(), {.check = [](ContextId, uint64_t) {
                      return absl::OkStatus();
                    }}};
  CallPlanner planner;
  ShardMapPtr map;
  absl::Duration coordinator_best = absl::InfiniteDuration();
  absl::Duration worker_best = absl::InfiniteDuration();
};

TEST_CASE("A step of one context costs coordinator and worker less than 50 µs each") {
  ContextSpec spec;
  spec.heads = 32;
  spec.kv_heads = 8;
  spec.head_dim = spec.v_head_dim = 128;
  spec.partition = {PartitionKind::kBlockCyclic, 64};
  spec.patterns = {"s2(64, 16, 16)"};
  Rng rng(1);
  const test::LayerKv kv(spec, 300, rng);
  const Tensor q = test::RandomTensor(1, spec.heads, spec.head_dim, rng);
  OneWorker one(spec);
  for (int64_t t = 0; t < 300; ++t) {
    const AppendRequest append = kv.Append(1, 0, t, 1);
    StepRequest step;
    step.context = 1;
    step.start = t;
    step.k = append.k;
    step.v = append.v;
    step.q = q;
    const absl::StatusOr<StepResult> result = one.Step(step);
    REQUIRE(result.ok());
    if (t % 100 != 99) continue;
    const Partial expected = test::Oracle(spec, kv, q, t + 1, spec.patterns[0]);
    CHECK(test::WorstError(result->out, result->lse, expected) < 0.02);
  }
  CHECK(one.coordinator_best < kCostMax);
  CHECK(one.worker_best < kCostMax);
  WARN("coordinator " << absl::FormatDuration(one.coordinator_best) << ", worker "
                      << absl::FormatDuration(one.worker_best)
                      << ", with the attention of a small context");
}

}  // namespace
}  // namespace annulus
