// The coordinator of a cluster: admits calls, plans them, fans them out to the workers, merges
// their partials and answers. A pure state machine (core/core.h) decides; this is the process
// around it. Each call's thread does the call's own tensor work (planning, packing, merging) and
// takes its turn at driving the transport and the machine; a thread of the coordinator's own drives
// them while no call does. Thread-safe: Service calls may come from any threads; they block.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "comm/fabric.h"
#include "runtime/coordinator/admitted_workers.h"
#include "runtime/coordinator/cluster_view.h"
#include "runtime/coordinator/limits.h"
#include "runtime/service/service.h"
#include "sharding/planner.h"

namespace annulus {

struct CoordinatorOptions {
  std::unique_ptr<Fabric> fabric;
  ClusterModel cluster;         // what the planner weighs with
  bool cluster_shared = false;  // its figures are one worker's alone on its node, and are shared
  absl::Duration heartbeat_period = absl::Milliseconds(100);
  absl::Duration heartbeat_timeout = absl::Seconds(1);  // a worker silent for longer is lost
  // How long contexts from before this start wait for all of their workers.
  absl::Duration recovery_wait = absl::Seconds(10);
  CoordinatorLimits limits;
  // Only workers that name a key of admitted() are heard; else whoever says Hello may join.
  bool workers_need_keys = false;
  const Clock* clock = &Clock::Real();
};

class Coordinator final : public Service {
 public:
  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(CoordinatorOptions options);

  // Stops the coordinator's thread; calls in flight end with CANCELLED. No call may start any more.
  ~Coordinator() override;

  absl::StatusOr<CallSize> Check(const AppendRequest& header, const CallContext& call) override;
  absl::StatusOr<CallSize> Check(const AttendRequest& header, const CallContext& call) override;

  // Where workers reach it.
  std::string fabric_address() const;
  // The keys of workers, and what they may say.
  AdmittedWorkers& admitted();
  // What went over the workers' network from and to here.
  Messenger::Counters fabric_counters() const;
  // The places of the first places_max contexts alone.
  ClusterView View(size_t places_max = 0) const;

 private:
  absl::StatusOr<AnyAnswer> Answer(const AnyRequest& request, const CallContext& call) override;

  class Impl;
  explicit Coordinator(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus
