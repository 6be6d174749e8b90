// Admission: the bounds on what a server has under way: calls that work, short calls, and bytes of
// tensors. What a call wants is taken before it is accepted and given back when its ticket goes.
// A bound is shared: one peer (peer.h) has at most half of it, so that others find the other half.
// Calls that cannot work yet wait for their turn, by tenant (fair_queue.h), as many at most as may
// work, and for kWaitMax at most; one whose turn would come too late is refused at once. Refusals
// name the bound and say when to try again. Thread-safe; a ticket belongs to one call.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/histogram.h"
#include "base/shared_bound.h"
#include "runtime/server/fair_queue.h"

namespace annulus {

class Admission {
  static constexpr size_t kBounds = 3;
  struct Entry {  // of a peer
    int refs = 0;
    std::array<int64_t, kBounds> held = {};
    int64_t waiting = 0;  // calls that wait for a slot
  };

 public:
  // The longest that a call waits for its turn.
  static constexpr absl::Duration kWaitMax = absl::Seconds(1);

  struct Limits {
    int in_flight_max = 1;
    int short_calls_max = 1;
    int64_t buffer_bytes_max = 1;
  };
  explicit Admission(const Limits& limits)
      : max_{limits.in_flight_max, limits.short_calls_max, limits.buffer_bytes_max},
        queue_(static_cast<size_t>(limits.in_flight_max)) {}

  // Calls that wait for a slot, by whose turn it would be.
  std::map<std::string, int64_t> Waiting() const;
  // How many seconds calls waited for their slots, those that had one at once among them.
  Histogram::Reading waits() const { return waits_.Read(); }

  // A peer, for as long as it calls. Must not outlive the Admission.
  class Peer {
   public:
    // `turn`: who takes turns with others, if the peer is more than one.
    Peer(Admission* admission, const std::string& name, std::string turn);
    Peer(Admission* admission, const std::string& name) : Peer(admission, name, name) {}
    ~Peer();
    Peer(const Peer&) = delete;
    Peer& operator=(const Peer&) = delete;

   private:
    friend class Admission;
    Admission* const admission_;
    const std::string name_;
    const std::string turn_;
    Entry* entry_;
  };

  // What a call needs a slot for.
  struct Work {
    double cost = 1;                               // as of FairQueue
    absl::Time deadline = absl::InfiniteFuture();  // of the call
  };

  // One call's part of the bounds. Must not outlive its peer.
  class Ticket {
   public:
    explicit Ticket(Peer* peer) : peer_(*peer), admission_(peer->admission_) {}
    ~Ticket();
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

    // A slot, for as long as the call can work: whoever waits for its client has none. A call that
    // finds none waits for its turn. RESOURCE_EXHAUSTED names in_flight_max.
    absl::Status Enter(const Work& work);
    void Leave();
    // The error of an Enter that would be refused at once; takes nothing.
    absl::Status CheckTurn(const Work& work);

    // A call of one small message each way. RESOURCE_EXHAUSTED names short_calls_max.
    absl::Status EnterShort();

    // Bytes of tensors. RESOURCE_EXHAUSTED names buffer_bytes_max; INVALID_ARGUMENT for what never
    // has room.
    absl::Status Reserve(int64_t bytes);

   private:
    friend class Admission;
    const Peer& peer_;
    Admission* const admission_;
    std::array<int64_t, kBounds> held_ = {};
    double cost_ = 0;  // of the work that it has a slot for
  };

 private:
  enum Bound { kSlots, kShortCalls, kBytes };
  static absl::string_view NameOf(Bound bound);

  // A call that waits for its turn, until it has a slot or has lost its place.
  struct WaitingCall : FairQueue::Call {
    WaitingCall(Ticket* its, double its_cost, absl::Time until) : ticket(its) {
      cost = its_cost;
      latest = until;
    }
    Ticket* const ticket;
    bool over = false;
    std::condition_variable news;
  };

  // All with the mutex held.
  BoundUse UseOf(Bound bound, const Entry& entry) const {
    return {max_[bound], held_[bound], entry.held[bound]};
  }
  bool HasRoom(Bound bound, int64_t count, const Entry& entry) const {
    return UseOf(bound, entry).HasRoom(count);
  }
  absl::Status Take(Bound bound, int64_t count, Ticket& ticket);
  void Give(Bound bound, int64_t count, Ticket& ticket);
  bool MayWait(const WaitingCall& call, absl::Time now) const;
  absl::Status Wait(WaitingCall& call, absl::Time now, std::unique_lock<std::mutex>& lock);
  void HandOn();
  absl::Status Refuse(Bound bound, int64_t count, const Entry& entry);

  const std::array<int64_t, kBounds> max_;
  mutable std::mutex mutex_;
  std::array<int64_t, kBounds> held_ = {};
  std::unordered_map<std::string, Entry> peers_;
  FairQueue queue_;  // of WaitingCall
  uint64_t refusals_ = 0;
  Histogram waits_{Histogram::WaitBounds()};
};

}  // namespace annulus
