// A coordinator and workers in threads of this process, over the local network.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "base/log.h"
#include "comm/local/local_network.h"
#include "runtime/coordinator/coordinator.h"
#include "runtime/worker/worker.h"
#include "tests/fake_device.h"

namespace annulus::test {

struct ClusterOptions {
  int workers = 1;
  std::string backend = "reference";
  bool fake_device = false;  // the backend's memory is apart from the host's
  // Makes another one of each worker's backend; may be empty.
  std::function<std::unique_ptr<Backend>(std::unique_ptr<Backend>)> wrap = {};
  int64_t kv_bytes_limit = int64_t{1} << 30;
  CoordinatorLimits limits = {};
};

inline StepResults Step(Service& service, absl::Span<const StepRequest> steps,
                        const CallContext& call = {}) {
  return StepResultsOf(service.Call(StepsRequest{steps}, call), steps.size());
}

class LocalCluster {
 public:
  // A crash here is told to the others. Who is only silent waits for a core of a busy machine.
  static constexpr absl::Duration kSilence = absl::Seconds(30);

  explicit LocalCluster(ClusterOptions options) : options_(options) {
    SetLogLevel(LogLevel::kOff);
    CoordinatorOptions coordinator;
    coordinator.fabric = network_.MakeFabric("coordinator").value();
    coordinator.limits = options.limits;
    coordinator.heartbeat_timeout = kSilence;
    coordinator_ = Coordinator::Start(std::move(coordinator)).value();
    for (int i = 0; i < options.workers; ++i) AddWorker();
  }

  // Waits until it has joined.
  void AddWorker() {
    const std::string name = absl::StrCat("w", workers_.size());
    WorkerOptions worker;
    worker.fabric = network_.MakeFabric(name).value();
    worker.coordinator_address = coordinator_->fabric_address();
    worker.name = name;
    worker.backend = MakeBackend(options_.backend, 1).value();
    if (options_.fake_device) {
      worker.backend = std::make_unique<FakeDeviceBackend>(std::move(worker.backend));
    }
    if (options_.wrap) worker.backend = options_.wrap(std::move(worker.backend));
    worker.kv_bytes_limit = options_.kv_bytes_limit;
    worker.heartbeat_timeout = kSilence;
    workers_.push_back(Worker::Start(std::move(worker)).value());
    ANNULUS_CHECK(workers_.back()->WaitUntilJoined(absl::Now() + absl::Seconds(20)).ok());
  }

  // As by kill -9: nothing is said to anybody.
  void Kill(int worker) { network_.Crash(absl::StrCat("local:w", worker)); }
  void KillCoordinator() { network_.Crash(coordinator_->fabric_address()); }

  Coordinator& service() { return *coordinator_; }
  Worker& worker(int i) { return *workers_[i]; }

 private:
  const ClusterOptions options_;
  LocalNetwork network_;
  std::unique_ptr<Coordinator> coordinator_;
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace annulus::test
