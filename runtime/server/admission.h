// Admission: the bounds on what a server has under way: calls that work, short calls, and bytes of
// tensors. What a call wants is taken before it is accepted and given back when its ticket goes.
// A bound is shared: one peer (peer.h) has at most half of it, so that others find the other half.
// Refusals name the bound and say when to try again. Thread-safe; a ticket belongs to one call.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace annulus {

// What one peer may have of a bound that it shares with others.
constexpr int64_t ShareOf(int64_t bound) {
  return bound - bound / 2;
}

class Admission {
  static constexpr size_t kBounds = 3;
  struct Entry {  // of a peer
    int refs = 0;
    std::array<int64_t, kBounds> held = {};
  };

 public:
  struct Limits {
    int in_flight_max = 1;
    int short_calls_max = 1;
    int64_t buffer_bytes_max = 1;
  };
  explicit Admission(const Limits& limits)
      : max_{limits.in_flight_max, limits.short_calls_max, limits.buffer_bytes_max} {}

  // A peer, for as long as it calls. Must not outlive the Admission.
  class Peer {
   public:
    Peer(Admission* admission, const std::string& name);
    ~Peer();
    Peer(const Peer&) = delete;
    Peer& operator=(const Peer&) = delete;

   private:
    friend class Admission;
    Admission* const admission_;
    const std::string name_;
    Entry* entry_;
  };

  // One call's part of the bounds. Must not outlive its peer.
  class Ticket {
   public:
    explicit Ticket(Peer* peer) : admission_(peer->admission_), entry_(peer->entry_) {}
    ~Ticket();
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

    // A slot, for as long as the call can work: whoever waits for its client has none. A call
    // without one waits for it up to `patience`. RESOURCE_EXHAUSTED names in_flight_max.
    absl::Status Enter(absl::Duration patience = absl::ZeroDuration());
    void Leave();
    // The error of an Enter that had no patience; takes nothing.
    absl::Status CheckSlot();

    // A call of one small message each way. RESOURCE_EXHAUSTED names short_calls_max.
    absl::Status EnterShort();

    // Bytes of tensors. RESOURCE_EXHAUSTED names buffer_bytes_max; INVALID_ARGUMENT for what never
    // has room.
    absl::Status Reserve(int64_t bytes);

   private:
    friend class Admission;
    Admission* const admission_;
    Entry* const entry_;
    std::array<int64_t, kBounds> held_ = {};
  };

 private:
  enum Bound { kSlots, kShortCalls, kBytes };
  static absl::string_view NameOf(Bound bound);

  // All with the mutex held.
  bool HasRoom(Bound bound, int64_t count, const Entry& entry) const;
  absl::Status Take(Bound bound, int64_t count, Ticket& ticket);
  void Give(Bound bound, int64_t count, Ticket& ticket);
  absl::Status Refuse(Bound bound, int64_t count, const Entry& entry);

  const std::array<int64_t, kBounds> max_;
  std::mutex mutex_;
  std::array<int64_t, kBounds> held_ = {};
  std::unordered_map<std::string, Entry> peers_;
  std::condition_variable slot_free_;
  int waiting_ = 0;  // for a slot
  uint64_t refusals_ = 0;
};

}  // namespace annulus
