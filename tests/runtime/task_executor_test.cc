// What a worker does with tasks that nobody waits for any more: nothing.
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/rng.h"
#include "comm/local/local_network.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/protocol/cluster/wire.h"
#include "runtime/worker/task_executor.h"
#include "tests/catch.h"
#include "tests/reliability.h"
#include "tests/runtime/inputs.h"

namespace annulus {
namespace {

constexpr int64_t kTokens = 200;

ContextSpec SmallSpec() {
  ContextSpec spec;
  spec.heads = spec.kv_heads = 2;
  spec.head_dim = spec.v_head_dim = 16;
  return spec;
}

// A worker's tasks without the worker, over one context that it holds alone.
struct OneRunner {
  OneRunner()
      : fabric(network.MakeFabric("w").value()),
        runner(MakeBackend("cpu", 1).value(), *fabric, Clock::Real(),
               {.kv_bytes_limit = int64_t{1} << 30}) {
    const ContextSpec spec = SmallSpec();
    REQUIRE(Run(wire::Open{1, 1, 1, spec, 0, {fabric->messenger().address()}}).ok());
    const TokenRange tokens{0, kTokens};
    Rng rng(1);
    const test::LayerKv kv(spec, kTokens, rng);
    wire::WorkItem append;
    append.epoch = append.storage_id = 1;
    append.k_tokens = kTokens;
    Buffer packed = PackAppend(spec, LayoutOf(spec, 1, kTokens), 0, tokens, kv.k, kv.v);
    append.append_bytes = packed.size();
    REQUIRE(Run(WorkOf(append), std::move(packed)).ok());
  }

  absl::Status Run(wire::Body body, Buffer payload = {},
                   absl::Time deadline = absl::InfiniteFuture(), bool cancelled = false) {
    WorkerTask task;
    task.body = std::move(body);
    task.payload = std::move(payload);
    task.deadline = deadline;
    task.cancel = std::make_shared<std::atomic<bool>>(cancelled);
    const TaskOutcome outcome = runner.Run(std::move(task));
    const wire::Body done = wire::Decode(outcome.messages.back()).value();
    const auto* work_done = std::get_if<wire::WorkDone>(&done);
    return work_done != nullptr ? work_done->items.at(0).status : std::get<wire::Done>(done).status;
  }
  wire::Work WorkOf(wire::WorkItem item) {
    wire::Work work;
    work.request = ++request;
    work.items.push_back(std::move(item));
    return work;
  }
  absl::Status Attend(absl::Time deadline, bool cancelled) {
    const ContextSpec spec = SmallSpec();
    wire::WorkItem attend;
    attend.epoch = attend.storage_id = attend.q_tokens = 1;
    attend.q_start = kTokens - 1;
    attend.kv_tokens = kTokens;
    attend.keys = {0, kTokens};
    attend.plan = PlanKind::kPassQ;
    attend.scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
    Buffer q(static_cast<size_t>(spec.heads * spec.head_dim) * SizeOf(spec.dtype));
    std::memset(q.data(), 0, q.size());
    attend.query_bytes = q.size();
    return Run(WorkOf(attend), std::move(q), deadline, cancelled);
  }

  LocalNetwork network;
  std::unique_ptr<Fabric> fabric;
  TaskExecutor runner;
  uint64_t request = 10;
};

TEST_CASE("A task whose deadline has passed, or that was cancelled, starts no kernel") {
  OneRunner one;
  const absl::Time now = absl::Now();
  CHECK(absl::IsDeadlineExceeded(one.Attend(now - absl::Nanoseconds(1), false)));
  CHECK(absl::IsDeadlineExceeded(one.Attend(absl::InfinitePast(), false)));
  CHECK(absl::IsCancelled(one.Attend(absl::InfiniteFuture(), true)));
  const absl::Duration late = one.runner.kernel_time();
  CHECK(late == absl::ZeroDuration());
  REQUIRE(one.Attend(now + absl::Seconds(20), false) == absl::OkStatus());
  CHECK(one.runner.kernel_time() > absl::ZeroDuration());
  test::Tell({7, "a deadline passes before the work", "2 late calls, 1 cancelled, 1 in time",
              "no kernel started", absl::StrCat(absl::FormatDuration(late), " in kernels"),
              late == absl::ZeroDuration()});
}

}  // namespace
}  // namespace annulus
