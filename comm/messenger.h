// Messenger: small messages between peers that come and go, and the news of their failure. Carries
// the service's control, its requests and answers. One of the three plug-in seams; implementations:
// local (one process, optionally seeded with delays, reorders between pairs, drops and crashes for
// simulation) and ucx (active messages over tcp or shm).
//
// Contract, the same for every implementation (tests/comm/messenger_contract):
//  - messages from one peer to another arrive in order, once, whole, or the peer goes down;
//  - after on_peer_down(p) nothing more comes from p, sends to p fail, and p is never reused;
//  - a peer that dies (kill -9) is reported; one that hangs is NOT: heartbeats are the owner's;
//  - a peer that connects to us is a stranger until Trust: it may send one message, of at most
//    kStrangerBytesMax; one that sends more is dropped and, if it was heard of, reported down;
//  - handlers run inside Deliver, never inside Send, Connect or Wait;
//  - one thread at a time may be in Wait, and one in Deliver; the rest may be called from any
//    thread at any time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "annulus/buffer.h"
#include "comm/link_key.h"

namespace annulus {

// A peer as this messenger numbers it: > 0, never reused. A peer that connects to us gets its
// number with its first message.
using PeerId = uint64_t;

// Both parts may have any size; a transport that sends the first bytes of a message otherwise than
// the rest sees to that itself.
struct Message {
  uint32_t type = 0;  // the protocol's own numbering
  std::string body;   // what it says
  Buffer payload;     // the tensors that go with it, never copied on the way out
};

// Body and payload of the one message that a stranger may send.
inline constexpr size_t kStrangerBytesMax = 64 << 10;

// Whom a messenger hears among those that connect to it. The others are refused before anything but
// their key is read, and are told nothing.
enum class PeerDoor {
  kStrangers,  // anybody, as a stranger until it is trusted
  kKeys,       // who names a key that was admitted, and was so trusted with it
  kOpen,       // anybody, trusted: for tests and benchmarks
};

class Messenger {
 public:
  struct Handlers {
    std::function<void(PeerId from, Message message)> on_message;
    std::function<void(PeerId peer, absl::Status why)> on_peer_down;
    // May be empty. A part of a message that is long has come, now and then: whatever the peer says
    // after it, a heartbeat too, comes only with its end.
    std::function<void(PeerId peer)> on_part = {};
  };

  virtual ~Messenger() = default;

  // Must be called once, before the first Deliver.
  virtual void SetHandlers(Handlers handlers) = 0;

  // Where others reach this messenger: printable, to be passed to their Connect.
  virtual std::string address() const = 0;

  // Starts a connection; messages may be sent at once. INVALID_ARGUMENT for a malformed address.
  // An unreachable address is reported by on_peer_down; one that does not admit the key is silent.
  virtual absl::StatusOr<PeerId> Connect(absl::string_view address, const LinkKey& key) = 0;
  // With a key that nobody else has.
  absl::StatusOr<PeerId> Connect(absl::string_view address) {
    return Connect(address, LinkKey::Random());
  }

  // kStrangers at the start; those that are connected stay.
  virtual void SetDoor(PeerDoor door) = 0;
  // From now on a key opens the door, to any number of connections, or no longer does.
  virtual void AdmitKey(const LinkKey& key) = 0;
  virtual void DismissKey(const LinkKey& key) = 0;
  // The key that the connection to this peer was made with. NOT_FOUND as Send.
  virtual absl::StatusOr<LinkKey> KeyOf(PeerId peer) const = 0;

  // This peer is no stranger any more. Nothing for one that is down or unknown.
  virtual void Trust(PeerId peer) = 0;

  // Queues a message. NOT_FOUND for a peer that is down or unknown, RESOURCE_EXHAUSTED when the
  // bytes queued to that peer exceed the messenger's limit.
  virtual absl::Status Send(PeerId peer, Message message) = 0;

  // Drops the connection at once; what is queued is lost. No on_peer_down follows here.
  virtual void Disconnect(PeerId peer) = 0;

  // Returns once there is something to deliver, after Wake, or after `wait`. What is under way, of
  // exchanges too, moves meanwhile.
  virtual void Wait(absl::Duration wait) = 0;

  // Runs handlers for what has arrived. Returns how many events it handled.
  virtual int Deliver() = 0;

  // Both, for a single thread.
  int Poll(absl::Duration wait) {
    Wait(wait);
    return Deliver();
  }

  // Ends a Wait, or the next one if there is none.
  virtual void Wake() = 0;

  // Payload bytes of all messages sent and received so far, bodies excluded.
  struct Counters {
    uint64_t bytes_sent = 0;
    uint64_t bytes_received = 0;
    uint64_t messages_sent = 0;
    uint64_t messages_received = 0;
  };
  virtual Counters counters() const = 0;
};

}  // namespace annulus
