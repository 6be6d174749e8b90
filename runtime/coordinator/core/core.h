// CoordinatorCore: everything a coordinator decides, as a state machine
//   (state, event) → (state, actions)
// without clock, transport, threads or tensors. Time comes with the event; tensors are moved, cut
// and merged by whoever carries the actions out. So a simulation can drive a whole cluster.
//
// Its parts each own their state and know those before them: members (who is there), tenants (who
// has how much), contexts (who holds what, and what is committed), recovery (what an earlier
// coordinator left), calls (what is in flight), mover (a context on its way to other workers).
// Thread-compatible.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "annulus/types.h"
#include "runtime/coordinator/core/calls.h"
#include "runtime/coordinator/core/contexts.h"
#include "runtime/coordinator/core/events.h"
#include "runtime/coordinator/core/members.h"
#include "runtime/coordinator/core/mover.h"
#include "runtime/coordinator/core/places.h"
#include "runtime/coordinator/core/recovery.h"
#include "runtime/coordinator/core/tenants.h"
#include "runtime/coordinator/limits.h"

namespace annulus {

class CoordinatorCore {
 public:
  CoordinatorCore(const CoordinatorLimits& limits, absl::Duration heartbeat_timeout,
                  const Incarnation& incarnation = {});

  CoordinatorCore(const CoordinatorCore&) = delete;
  CoordinatorCore& operator=(const CoordinatorCore&) = delete;

  Actions Handle(absl::Time now, const Event& event);

  // When a Tick is due at the latest; infinite when nothing waits for one.
  absl::Time NextTimer() const;

  // What a caller may know; the default caller is the process itself.
  // NOT_FOUND for an unknown context, UNAVAILABLE while it is being recovered.
  absl::StatusOr<ContextInfo> Describe(ContextId id, const Caller& caller = {}) const;
  // The map of a context that has this layer and can be used. Errors as of a call that works on it.
  absl::StatusOr<ShardMapPtr> Look(ContextId id, int layer, const Caller& caller) const;
  // INVALID_ARGUMENT for a limit outside [1, kListMax], UNAVAILABLE while contexts are recovered.
  absl::StatusOr<std::vector<ContextInfo>> List(const ListRequest& request,
                                                const Caller& caller = {}) const;
  // Callers who are no admins get the cluster's health (its epoch, its workers and how full they
  // are, without their addresses on the workers' network), and beside it what is their tenant's.
  ClusterStatus Status(absl::Time now, const Caller& caller = {}) const;

  // Where contexts lie, those with the lowest ids first.
  std::vector<ContextPlaces> Places(size_t places_max) const;
  // Whether a context moves.
  bool moving() const { return mover_.moving(); }
  // Contexts that wait for workers to join again.
  int64_t recovering() const { return recovery_.pending() + contexts_.CountWaiting(); }
  // How long the last such wait took, of all contexts together, or has taken so far. Looked at when
  // workers come and go, and with each Tick.
  absl::Duration recovery_time(absl::Time now) const {
    return recovery_began_.has_value() ? now - *recovery_began_ : recovery_time_;
  }

 private:
  void On(const event::Heard& heard);
  void On(const event::PartHeard& part);
  void On(const event::PeerDown& down);
  void On(const event::SendFailed& failed);
  void On(const event::Begin& begin) { calls_.Begin(begin); }
  void On(const event::Prepared& prepared) { calls_.Prepared(prepared); }
  void On(const event::GiveUp& give_up) { calls_.GiveUp(give_up.call, give_up.why); }
  void On(const event::Use& use);
  void On(const event::Tick&);

  void OnHello(PeerId peer, const wire::Hello& hello);
  absl::Status OnBody(WorkerId id, const wire::Body& body);
  void OnHeartbeat(WorkerId id, const wire::Heartbeat& heartbeat);
  void LoseWorker(WorkerId id, const absl::Status& why);
  void NoteRecovery();

  const CoordinatorLimits limits_;
  const absl::Duration heartbeat_timeout_;
  Outbox out_;
  Members members_;
  Tenants tenants_;
  Contexts contexts_;
  Recovery recovery_;
  Calls calls_;
  Mover mover_;
  std::optional<absl::Time> recovery_began_;  // contexts wait since then
  absl::Duration recovery_time_;              // of the last wait that is over
};

}  // namespace annulus
