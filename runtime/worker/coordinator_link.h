// CoordinatorLink: a worker's side of its link to the coordinator: joins, sends heartbeats, notices
// when the coordinator is gone, passes tasks on and their outcomes back. A coordinator that is gone
// may come back, as the same or as another one, perhaps elsewhere: for a while the worker keeps
// what it holds and tries to join again, and then tells what that is. It also has the links to
// other workers over which partials come and go (MergePoint). It computes nothing, has no thread of
// its own and never waits: whoever owns it has it handle what there is, a worker's threads in turn
// or a simulation. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "comm/messenger.h"
#include "runtime/worker/grants.h"
#include "runtime/worker/link_state.h"
#include "runtime/worker/peer_links.h"
#include "runtime/worker/task.h"

namespace annulus {

class CoordinatorLink {
 public:
  using State = LinkState;

  struct Options {
    std::string coordinator_address;
    std::string name;
    std::string backend;
    int64_t kv_bytes_limit = 0;
    absl::Duration heartbeat_period;
    absl::Duration heartbeat_timeout;
    absl::Duration rejoin_timeout;      // 0: a coordinator that is gone is lost
    std::function<int64_t()> kv_bytes;  // held now
    // Whose contexts hold how much, those first of whom that is news (KvStore::TellOwners).
    std::function<std::vector<OwnerBytes>(size_t owners_max)> owners;
    // Takes a task for execution (TaskQueue), or returns false when it has no room. Tasks that only
    // tidy up (`must`) may use room that others may not.
    std::function<bool(WorkerTask& task, bool must)> take;
    // Where clients upload to this worker, and what they may; null: nowhere. Outlives the node.
    std::string data_address = {};
    GrantTable* grants = nullptr;
    std::string coordinator_name = {};            // for people; empty: its address
    std::optional<LinkKey> coordinator_key = {};  // absent: one of our own
  };

  // Both references must outlive this. Sets the messenger's handlers.
  CoordinatorLink(Messenger& messenger, Options options, const Clock& clock);

  // Handles what has come and what is due.
  void Handle();
  // When there is something to handle at the latest, even if nothing comes.
  absl::Time NextDue() const { return next_beat_; }

  // Sends what a task came to.
  void Finish(TaskOutcome outcome);

  // Asks the coordinator to move away what this worker holds; it has left once that is done.
  void Leave();

  // Where the coordinator is now, if it came back elsewhere, and the key that it admits now.
  void SetCoordinatorAddress(const std::string& address, const std::optional<LinkKey>& key);

  // This worker can compute no more: it is lost.
  void Fail(absl::Status why) { End("the backend cannot go on", std::move(why)); }

  // Sets the cancel flag of everything that runs.
  void CancelAll();

  State state() const { return state_; }
  uint64_t id() const { return id_; }  // 0 until ready
  const absl::Status& why_lost() const { return why_lost_; }

 private:
  void Connect();
  void OnMessage(PeerId from, Message message);
  void OnWelcome(const wire::Welcome& welcome);
  void OnTask(wire::Body body, Buffer payload);
  void OnPartials(PeerId from, Message message);
  void OnCancel(const wire::Cancel& cancel);
  void TakePartials(PeerLinks::Early partials, const std::shared_ptr<MergePoint>& merge_point);
  void RevokeGrants(const wire::Body& body);
  void OnTime();
  void OnTimeRejoining(absl::Time now);
  void SayThatItWaits(absl::Time now);
  const std::string& coordinator_name() const {
    return options_.coordinator_name.empty() ? coordinator_address_ : options_.coordinator_name;
  }
  void Disconnect();
  void Vanish(absl::Status why);
  void Lose(absl::Status why) { End("coordinator lost", std::move(why)); }
  void End(absl::string_view what, absl::Status why);
  void Send(Message message);
  void TellLinkLost() { Send(wire::Encode(wire::LinkLost{})); }

  // A Work that has come and is not answered.
  struct Running {
    std::shared_ptr<std::atomic<bool>> cancel;
    std::shared_ptr<MergePoint> merge_point;
  };

  Messenger& messenger_;
  const Options options_;
  const Clock& clock_;
  State state_ = State::kJoining;
  std::string coordinator_address_;
  std::optional<LinkKey> coordinator_key_;
  LinkKey peer_key_;  // of Welcome
  uint64_t id_ = 0;
  uint64_t incarnation_ = 0;  // of the coordinator, last
  absl::Status why_lost_;
  PeerId coordinator_ = 0;  // 0: not connected
  absl::Time handled_ = absl::InfinitePast();
  absl::Time heard_ = absl::InfinitePast();      // the coordinator, last
  absl::Time next_beat_ = absl::InfinitePast();  // of the heartbeat, or of the next try to join
  absl::Time connected_ = absl::InfinitePast();
  absl::Duration answer_wait_;                     // for the answer to a Hello, before the next one
  absl::Time vanished_at_ = absl::InfinitePast();  // the coordinator, when rejoining began
  absl::Time give_up_at_ = absl::InfiniteFuture();  // when rejoining ends
  absl::Time next_word_ = absl::InfinitePast();     // to people, that this worker waits
  bool leaves_ = false;
  bool inventory_asked_ = false;
  bool inventory_taken_ = false;
  std::vector<Message> inventory_;       // to be sent to the next coordinator
  std::map<uint64_t, Running> running_;  // by request
  PeerLinks peers_;
};

}  // namespace annulus
