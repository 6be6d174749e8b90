// Calls: the calls in flight, each from its admission to its end.
//
// A call that works on tokens (Append, Attend, Step) is one of items, which share its messages and
// nothing else: each is admitted, committed or taken back for itself. An item has an answer only
// when every rank that takes part has answered once, at the epoch of its admission; it fails with
// the error that explains the others. The call ends with its last item.
//
// A layer's tokens are committed when every holder has stored them, copies too; an append that
// fails on one is taken back on the others. One append at a time on a layer: another one, which may
// be a repetition of it, gets UNAVAILABLE. A repetition of the layer's last append (the same
// RequestKey) stores nothing and answers as the first did.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/shared_bound.h"
#include "runtime/coordinator/core/contexts.h"
#include "runtime/coordinator/core/events.h"
#include "runtime/coordinator/core/members.h"
#include "runtime/coordinator/core/recovery.h"
#include "runtime/coordinator/core/tenants.h"
#include "runtime/coordinator/limits.h"
#include "runtime/protocol/cluster/wire.h"

namespace annulus {

class Calls {
 public:
  Calls(const CoordinatorLimits& limits, Outbox& out, Members& members, Tenants& tenants,
        Contexts& contexts, const Recovery& recovery)
      : limits_(limits),
        out_(out),
        members_(members),
        tenants_(tenants),
        contexts_(contexts),
        recovery_(recovery),
        in_flight_({.name = "in_flight_max"}, limits.in_flight_max),
        in_flight_bytes_({.name = "in_flight_bytes_max"}, limits.in_flight_bytes_max) {}

  void Begin(const event::Begin& begin);
  void Prepared(const event::Prepared& prepared);
  // The call, if there is one, ends with this error.
  void GiveUp(CallId id, const absl::Status& why);
  // Not OK: no worker would have said so.
  absl::Status OnDone(WorkerId id, const wire::Done& done);
  absl::Status OnWorkDone(WorkerId id, const wire::WorkDone& done);
  // One of its links to other workers is down.
  void OnLinkLost(WorkerId id);
  // After it has left the maps of contexts.
  void LoseWorker(WorkerId id, const absl::Status& why);
  // Calls on contexts that have gone on at another epoch end.
  void EndStale(const absl::Status& why);
  // To be called when time has passed.
  void EndDue();
  absl::Time NextTimer() const;

  // Calls under way that the caller may know of, and the bytes of their tensors.
  struct InFlight {
    int64_t calls = 0;
    int64_t bytes = 0;
  };
  InFlight CountInFlight(const Caller& caller) const;

 private:
  enum class Kind { kOpen, kTruncate, kRelease, kItems };
  struct Item {
    request::WorkItem ask;
    ShardMapPtr map;  // null: it was not admitted
    bool appends = false;
    bool attends = false;
    bool sent = false;
    bool ended = false;
    int64_t horizon = 0;
    int64_t truncations = 0;  // of its layer
    uint64_t append_number = 0;
    int64_t kv_bytes = 0;  // that its append may add
    bool copies = false;   // a block that forks hold too, among these
    size_t awaited = 0;    // holders whose answer is
    absl::Status status;   // while it has not ended: what some rank said
    bool echo = false;     // perhaps because another rank failed
    bool merges = false;   // among the workers, which wait for each other's partials
  };
  struct Call {
    Kind kind = Kind::kOpen;
    std::string tenant;  // whose call it is
    std::string peer;    // who it counts as where bounds are shared (peer_name.h)
    absl::Time deadline;
    ContextId context = 0;  // of a call without items
    std::string owner;      // of that
    uint64_t epoch = 0;     // of its map
    ContextId uses = 0;     // of a Truncate, and a Fork's parent: it is in use meanwhile
    int64_t bytes = 0;      // that this process holds of it
    int64_t uploading = 0;  // bytes that workers hold or wait for
    bool prepared = false;
    bool merges = false;  // some item does
    std::vector<Item> items;
    std::vector<WorkerId> workers;                 // as action::Admit
    std::map<WorkerId, int> pending;               // receivers whose answer is awaited
    std::map<WorkerId, std::vector<size_t>> sent;  // the items that each got
    // All that has not ended has failed, perhaps as the echo of another rank's error: the call
    // waits a little for that.
    absl::Time failure_due = absl::InfiniteFuture();
  };
  using Entry = std::map<CallId, Call>::iterator;

  absl::Status Start(Entry entry, const request::Create& create, const Caller& caller);
  absl::Status Start(Entry entry, const request::Fork& fork, const Caller& caller);
  absl::Status Start(Entry entry, const request::Truncate& truncate, const Caller& caller);
  absl::Status Start(Entry entry, const request::Release& release, const Caller& caller);
  absl::Status Start(Entry entry, const request::KeepAlive& keep_alive, const Caller& caller);
  void Await(Call& call, const ShardMap& map, Kind kind) const;
  absl::Status Named(WorkerId id, const Item* item, const absl::Status& status);
  void Settle(Entry entry);
  void End(Entry entry, absl::Status status);
  void CancelPending(CallId id, const Call& call);
  // Takes room for a call's tensors. `direct`: they do not pass this process.
  absl::Status Reserve(int64_t bytes, bool direct, Call& call, const Caller& caller);
  // Counts what a call takes more. RESOURCE_EXHAUSTED names in_flight_bytes_max.
  absl::Status Hold(int64_t bytes, Call& call);
  // RESOURCE_EXHAUSTED names the caller's quota of calls, or in_flight_max.
  absl::Status CheckRoom(const Call& call, const Caller& caller) const;
  absl::Status CheckCreate(const Caller& caller);

  // admit_items.cc
  absl::Status Start(Entry entry, const request::Work& work, const Caller& caller);
  absl::StatusOr<std::vector<std::string>> DataAddresses(const request::WorkItem& append,
                                                         const Caller& caller) const;
  absl::Status AdmitItem(Item& item, CallId call, const Caller& caller);
  absl::Status CheckKv(const Caller& caller, int64_t bytes) const;
  static int64_t BytesOf(const Item& item);
  absl::StatusOr<Context*> FindUsable(ContextId id, const Caller& caller) const;

  // items.cc
  absl::Status CheckOvertaken(const Item& item) const;
  void EndIfHopeless(Entry entry);
  void TellOfFailed(CallId id, Call& call);
  void EndItem(CallId call, Item& item, const absl::Status& status);
  void StopUsing(const Item& item);
  int64_t RoomFor(const Item& item, WorkerId id) const;
  Layer& LayerOf(const Item& item) const;

  const CoordinatorLimits& limits_;
  Outbox& out_;
  Members& members_;
  Tenants& tenants_;
  Contexts& contexts_;
  const Recovery& recovery_;
  std::map<CallId, Call> calls_;
  SharedBound in_flight_;        // calls that have started
  SharedBound in_flight_bytes_;  // that this process holds of them
};

}  // namespace annulus
