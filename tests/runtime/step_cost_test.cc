// What a decode step costs beside its attention: the coordinator's packing and merging, the
// worker's storing and answering. Times are the best of many, which other load disturbs least.
#include <algorithm>

#include "absl/time/clock.h"
#include "base/rng.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "tests/catch.h"
#include "tests/runtime/inputs.h"
#include "tests/runtime/one_worker.h"

namespace annulus {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr absl::Duration kCostMax = absl::Milliseconds(50);
#else
constexpr absl::Duration kCostMax = absl::Microseconds(50);
#endif

struct TimedWorker : test::OneWorker {
  using OneWorker::OneWorker;

  absl::StatusOr<StepResult> Step(const StepRequest& request) {
    BatchCall work({CallItem(request)}, CallContext(), planner, Clock::Real());
    const action::Admit admit = Admit(/*appends=*/true, /*attends=*/true);
    absl::Time begin = absl::Now();
    PreparedCall prepared = work.Prepare(admit).value();
    absl::Duration coordinator = absl::Now() - begin;

    begin = absl::Now();
    WorkerTask task = TaskOf(std::move(prepared));
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
  TimedWorker one(spec);
  for (int64_t t = 0; t < 300; ++t) {
    StepRequest step = kv.Step(1, 0, t, q);
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
