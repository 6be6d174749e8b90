// Internal to comm/ucx: the messenger over a UcxTransport. A connection is one link for each
// direction: the side that connects sends its address first, and the other side connects back.
// Thread rule: as messenger.h says.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "comm/messenger.h"
#include "comm/ucx/ucx_transport.h"

namespace annulus {

class UcxMessenger final : public Messenger {
 public:
  explicit UcxMessenger(UcxTransport& transport);

  void SetHandlers(Handlers handlers) override { handlers_ = std::move(handlers); }
  std::string address() const override { return transport_.address().ToString(); }
  absl::StatusOr<PeerId> Connect(absl::string_view address) override;
  absl::Status Send(PeerId peer, Message message) override;
  void Disconnect(PeerId peer) override;
  void Wait(absl::Duration wait) override;
  int Deliver() override;
  void Wake() override { transport_.Wake(); }
  Counters counters() const override;

 private:
  // A connection's name: who opened it, its number there, and which end of it we are.
  struct Key {
    uint64_t fabric;
    uint64_t number;
    bool opener;

    auto operator<=>(const Key&) const = default;
  };

  struct Incoming {
    Message message;
    bool is_hello = false;
    bool has_header = false;
    bool begun = false;
    size_t data_bytes = 0;  // to come in all, known once begun
    size_t received_bytes = 0;
  };

  struct Peer {
    Key key;
    PeerId id = 0;  // 0 until it is connected to or has spoken
    std::shared_ptr<UcxLink> link = {};
    uint64_t next_out = 0;  // sequence numbers of messages
    uint64_t next_in = 0;
    std::map<uint64_t, Incoming> incoming = {};  // not complete, or before their turn
  };

  // An absent message is the news that the peer is down.
  struct Arrival {
    PeerId from;
    std::optional<Message> message;
    absl::Status why;
  };

  void OnMessage(absl::Span<const std::byte> header, absl::Span<const std::byte> data);
  void TakeComplete(Peer& peer);
  void Greet(Peer& peer, absl::string_view address);
  void Attach(Peer& peer, UcxAddress remote);
  void OnLinkDown(Key key, const absl::Status& why);
  void Forget(const Key& key);
  void Transmit(Peer& peer, uint8_t kind, Message message);

  UcxTransport& transport_;
  Handlers handlers_;
  PeerId last_peer_ = 0;
  uint64_t last_number_ = 0;
  std::map<Key, Peer> peers_;
  std::map<PeerId, Key> keys_;  // the living peers
  std::set<Key> closed_;        // accepted once and down: what still comes is dropped
  std::deque<Key> closed_order_;
  std::deque<Arrival> arrivals_;
  Counters counters_;
};

}  // namespace annulus
