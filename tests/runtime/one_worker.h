// A coordinator's calls and one worker without the transport between them.
#pragma once

#include <memory>
#include <utility>

#include "base/check.h"
#include "runtime/context/layout.h"
#include "runtime/coordinator/calls/batch_call.h"
#include "runtime/worker/work_runner.h"

namespace annulus::test {

struct OneWorker {
  static constexpr WorkerId kWorker = 7;

  // It holds context 1.
  explicit OneWorker(const ContextSpec& spec, int64_t list_cache_bytes = 0)
      : planner({}, false, list_cache_bytes) {
    ShardMap shards;
    shards.context = shards.storage_id = shards.epoch = 1;
    shards.spec = spec;
    shards.world = 1;
    shards.heads = HeadMapOf(spec, 1);
    shards.holders = {{.worker = kWorker, .rank = 0}};
    shards.retention = std::make_shared<const Retention>(Retention::Of(spec).value());
    map = std::make_shared<const ShardMap>(std::move(shards));
    ANNULUS_CHECK(store.Open(1, spec, 1, 0).ok());
  }

  action::Admit Admit(bool appends, bool attends) const {
    return {1, {kWorker}, {{absl::OkStatus(), map, appends, attends, 0}}};
  }

  // What the worker is told.
  static WorkerTask TaskOf(PreparedCall prepared) {
    Message& message = prepared.messages.at(0).message;
    WorkerTask task;
    task.body = wire::Decode(message).value();
    task.payload = std::move(message.payload);
    return task;
  }

  std::unique_ptr<Backend> backend = MakeBackend("cpu", 1).value();
  KvStore store{int64_t{1} << 30};
  WorkRunner runner{store, *backend, Clock::Real(), {.check = [](ContextId, uint64_t) {
                      return absl::OkStatus();
                    }}};
  CallPlanner planner;
  ShardMapPtr map;
};

}  // namespace annulus::test
