// Recovery: after a restart of the coordinator, contexts are rebuilt from what the workers that
// join again say they hold.
//
// Which tokens the holders of a layer have alike: each has carried out a prefix of the same orders,
// and one whose last append has a higher append number is ahead. When an append was sent, all
// tokens before its start were committed, so all holders have those alike; of what comes from its
// start on, those behind have nothing, or what was taken back since. So the layer is cut to the
// fewest tokens of any holder, and to the start of each last append that some holder does not know.
//
// Who the holders are is what the latest epoch says: one that it does not list was given up before,
// and is stale. Which epoch is the latest is certain only if no one of those that are missing may
// know a later one. A later one has a holder of every rank, and acknowledges nothing before all of
// its holders know it: so a rank of which nobody is missing proves that there is none, or that
// nothing was acknowledged since.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/coordinator/core/contexts.h"
#include "runtime/coordinator/core/members.h"
#include "runtime/coordinator/limits.h"
#include "runtime/protocol/cluster/wire.h"

namespace annulus {

class Recovery {
 public:
  Recovery(const CoordinatorLimits& limits, const Incarnation& incarnation, Outbox& out,
           Members& members, Contexts& contexts)
      : limits_(limits),
        incarnation_(incarnation),
        out_(out),
        members_(members),
        contexts_(contexts) {}

  // To be called first of every event: the first one starts the wait.
  void NoteTime();
  bool waits() const { return out_.now() < until_; }
  // Contexts whose workers are not all back, as far as the caller may know.
  int64_t Pending(const Caller& caller) const;
  int64_t pending() const { return std::ssize(found_); }
  // Whether workers of an earlier coordinator may yet tell of contexts that nobody has told of.
  bool may_find_more() const;

  // A context for a call. One that is not there, and one that the caller may not know, are
  // NOT_FOUND alike, or UNAVAILABLE while it may come back.
  absl::StatusOr<Context*> Find(const Caller& caller, ContextId id) const;

  // Not OK: no worker would have said so.
  absl::Status OnInventory(WorkerId id, const wire::Inventory& inventory);
  void LoseWorker(WorkerId id);
  // Once the time is over: contexts of which some rank is not back are lost, unless a copy of it
  // is. They stay known as lost until released.
  void EndIfDue();
  absl::Time NextTimer() const { return found_.empty() ? absl::InfiniteFuture() : until_; }

 private:
  // What is known of a context from before this coordinator.
  struct Found {
    std::map<WorkerId, wire::Inventory> inventories;  // of those that are back

    // The latest: who holds the context is what it says.
    const wire::Inventory& latest() const;
    // Whether it may have been moving here, and not have arrived.
    bool activating() const;
    size_t holders() const { return latest().addresses.size() + latest().copies.size(); }
    // Whether no missing holder can know a later epoch at which something was acknowledged.
    bool is_safe() const;
  };

  absl::Status WhyUnknown(const Caller& caller, ContextId id) const;
  absl::Status CheckInventory(const Member& member, const wire::Inventory& inventory) const;
  size_t KnownToBeMissing() const;
  bool IsBack(const std::string& address) const;
  void ForgetHalfMade();
  std::vector<Holder> HoldersBack(const Found& found) const;
  void DropStale(ContextId id, Found& found);
  void ForgetOtherForms(ContextId id);
  ShardMap MapOf(ContextId id, const Found& found);
  void Rebuild(ContextId id, const Found& found);

  const CoordinatorLimits& limits_;
  const Incarnation incarnation_;
  Outbox& out_;
  Members& members_;
  Contexts& contexts_;
  absl::Time until_ = absl::InfiniteFuture();
  std::map<ContextId, Found> found_;  // by the id at the workers
};

}  // namespace annulus
