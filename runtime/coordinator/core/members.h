// Members: the workers of a cluster, as a coordinator knows them: who is there, who was heard when,
// and the epoch, which moves on whenever it changes who holds what.
//
// A worker is lost when its link breaks or when it was silent for heartbeat_timeout; a part of a
// long message is a sign of life. It is cut off at once: its messages are refused, and its id is
// never used again. A coordinator that stood still itself has heard nobody, and blames no worker
// for that.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "annulus/types.h"
#include "runtime/coordinator/core/events.h"
#include "runtime/protocol/cluster/wire.h"

namespace annulus {

struct Member {
  PeerId peer = 0;
  WorkerState state = WorkerState::kReady;
  WorkerStatus status;       // but for its state
  bool had_another = false;  // link to a coordinator, before this one
  std::string label;         // as action::WorkerJoined
  absl::Time heard;          // the last sign of life
  uint64_t inventories_due = 0;
  int64_t kv_bytes_since = 0;  // stored since its last heartbeat, by appends
  bool may_leave = false;      // it was told so: nothing needs it
  bool banned = false;         // it did what no worker does: it may not join again

  bool is_ready() const { return state == WorkerState::kReady; }
  bool is_draining() const { return state == WorkerState::kDraining; }
  bool is_up() const { return is_ready() || is_draining(); }
};

class Members {
 public:
  Members(Outbox& out, absl::Duration heartbeat_timeout, const Incarnation& incarnation)
      : out_(out), heartbeat_timeout_(heartbeat_timeout), incarnation_(incarnation) {}

  // To be called first of every event. A gap of more than half a heartbeat_timeout since the last
  // one counts as a stand-still of the coordinator itself: everybody's patience starts anew.
  // How long it was, or 0.
  absl::Duration NoteTime();
  // Losses may be due to a stand-still of the coordinator, or be about to end.
  bool in_doubt() const { return out_.now() < doubt_until_; }

  uint64_t epoch() const { return epoch_; }
  uint64_t NextEpoch() { return ++epoch_; }
  void SeeEpoch(uint64_t epoch) { epoch_ = std::max(epoch_, epoch); }

  // Workers that are there, by their links. 0: no worker is at this one.
  const std::map<PeerId, WorkerId>& links() const { return links_; }
  WorkerId At(PeerId peer) const;
  bool IsUp(WorkerId id) const;
  const Member& at(WorkerId id) const { return members_.at(id); }
  std::vector<WorkerId> Ready() const;  // ascending
  // Whether so many workers may be ready before long: as many were at once, or this coordinator has
  // just begun, and others are still joining.
  bool MayBeReady(size_t workers) const {
    return workers <= ready_most_ || out_.now() < began_ + incarnation_.recovery_wait;
  }

  // The worker that joins with this Hello, if its last link seems to be there still. That is to be
  // lost first, and is about to be back.
  WorkerId FindReturning(const wire::Hello& hello);
  // A worker that may not join again is told so.
  void Join(PeerId peer, const wire::Hello& hello);
  // Its state goes to kLeft or kLost, and the epoch moves on.
  void Lose(WorkerId id, const absl::Status& why);
  void Ban(WorkerId id) { members_.at(id).banned = true; }
  std::vector<WorkerId> Silent() const;  // for too long
  // When somebody may be found silent.
  absl::Time NextTimer() const;

  void Hear(WorkerId id) { members_.at(id).heard = out_.now(); }
  void Beat(WorkerId id, const wire::Heartbeat& heartbeat);
  void LetLeave(WorkerId id, bool may_leave);
  // False if it told of more contexts than it had announced.
  bool TakeInventory(WorkerId id);
  void NoteStored(WorkerId id, int64_t bytes) { members_.at(id).kv_bytes_since += bytes; }

  // Those that are not there are told nothing.
  void Tell(WorkerId id, const wire::Body& body);
  void TellHolders(const ShardMap& map, const wire::Body& body);

  std::vector<WorkerStatus> Status(absl::Time now) const;

 private:
  std::map<WorkerId, Member>::iterator FindAddress(const std::string& address);
  void ForgetOldLosses();

  Outbox& out_;
  const absl::Duration heartbeat_timeout_;
  const Incarnation incarnation_;
  absl::Time began_ = absl::InfinitePast();
  absl::Time last_event_ = absl::InfinitePast();
  absl::Time doubt_until_ = absl::InfinitePast();
  uint64_t epoch_ = 0;
  WorkerId last_worker_ = 0;
  size_t ready_most_ = 0;  // at once
  std::map<WorkerId, Member> members_;
  std::map<PeerId, WorkerId> links_;
};

}  // namespace annulus
