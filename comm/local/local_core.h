// Internal to comm/local: the state behind a LocalNetwork, one lock around all of it. Handlers run
// without the lock.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "comm/local/local_exchange.h"
#include "comm/local/local_network.h"

namespace annulus {

struct LocalNode;

// A connection. End 0 connected; end 1 has no number until it is spoken to.
struct LocalLink {
  LinkKey key;
  struct End {
    std::shared_ptr<LocalNode> node;  // null: nobody was at the address
    PeerId peer = 0;
    bool closed = false;
    size_t queued_bytes = 0;  // on the way to this end
    bool stranger = false;    // the other end, which has spoken and is not trusted yet
    absl::Time last_arrival = absl::InfinitePast();
  };
  End ends[2];
  bool cut = false;  // what is sent from now on is lost
};

struct LocalEvent {
  std::shared_ptr<LocalLink> link;  // null: an action
  int to = 0;                       // the end that it goes to
  std::optional<Message> message;   // absent: the link went down, for the reason `why`
  absl::Status why;
  std::function<void()> action;
};

struct LocalNode {
  struct Place {
    std::shared_ptr<LocalLink> link;
    int end;
  };

  std::string address;
  Messenger::Handlers handlers;
  bool alive = true;
  bool paused = false;
  bool woken = false;
  PeerId last_peer = 0;
  std::map<PeerId, Place> peers;
  PeerDoor door = PeerDoor::kStrangers;
  KeyRing admitted;
  std::deque<LocalEvent> inbox;  // threads mode
  std::condition_variable ready;
  Messenger::Counters counters;
};

class LocalCore {
 public:
  explicit LocalCore(LocalNetworkOptions options);
  ~LocalCore();

  absl::StatusOr<std::shared_ptr<LocalNode>> AddNode(absl::string_view name);
  void Kill(LocalNode& node, absl::string_view why);
  void Crash(absl::string_view address);

  // A messenger's calls.
  absl::StatusOr<PeerId> Connect(const std::shared_ptr<LocalNode>& node, absl::string_view address,
                                 const LinkKey& key);
  void SetDoor(LocalNode& node, PeerDoor door);
  void AdmitKey(LocalNode& node, const LinkKey& key, bool admitted);
  absl::StatusOr<LinkKey> KeyOf(const LocalNode& node, PeerId peer) const;
  void Trust(LocalNode& node, PeerId peer);
  absl::Status Send(LocalNode& node, PeerId peer, Message message);
  void Disconnect(LocalNode& node, PeerId peer);
  void Wait(LocalNode& node, absl::Duration wait);
  int Deliver(LocalNode& node);
  void Wake(LocalNode& node);
  Messenger::Counters counters(const LocalNode& node) const;
  absl::StatusOr<std::unique_ptr<Exchange>> OpenExchange(LocalNode& node, uint64_t channel,
                                                         int rank,
                                                         absl::Span<const std::string> addresses);

  // The simulation's.
  const Clock& clock() const { return clock_; }
  void SetPaused(absl::string_view address, bool paused);
  void SetClogged(absl::string_view from, absl::string_view to, bool clogged);
  void At(absl::Time when, std::function<void()> action);
  bool Step(absl::Time until);  // false if there is no event up to `until`
  void AdvanceTo(absl::Time when);

 private:
  using Key = std::pair<absl::Time, uint64_t>;  // when, and the order of posting

  struct SimulatedClock final : Clock {
    absl::Time Now() const override { return now; }
    absl::Time now = absl::UnixEpoch();
  };

  struct Members {
    std::vector<std::string> addresses;         // by rank
    std::vector<const LocalNode*> opened;       // by rank; null until it opens
    std::shared_ptr<LocalExchangeGroup> early;  // held until all have opened, or for long enough
    std::weak_ptr<LocalExchangeGroup> group;
  };

  void Transmit(LocalEvent event);
  void ReportDown(const std::shared_ptr<LocalLink>& link, int to, absl::string_view why);
  static bool Admits(const LocalEvent& event);
  void DropStranger(LocalEvent event);
  bool Deliver(LocalEvent event, std::unique_lock<std::mutex>& lock);
  bool Blocked(const LocalEvent& event) const;
  void FailExchangesOf(const LocalNode& node, absl::string_view why);
  Members& MembersOf(uint64_t channel, absl::Span<const std::string> addresses);

  const LocalNetworkOptions options_;
  const bool simulated_;
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<LocalNode>, std::less<>> living_;  // by address
  std::vector<std::shared_ptr<LocalLink>> links_;                          // with an open end
  std::map<uint64_t, Members> exchanges_;                                  // by channel
  std::deque<uint64_t> early_order_;  // channels in the order of their first opening
  size_t sweep_at_ = 0;               // how many exchanges_ make it worth looking for ended ones

  Rng rng_;
  SimulatedClock clock_;
  uint64_t last_event_ = 0;
  std::map<Key, LocalEvent> events_;
  std::map<Key, LocalEvent> held_;  // due, but the receiver is paused or the way clogged
  std::set<std::pair<std::string, std::string>> clogs_;
};

}  // namespace annulus
