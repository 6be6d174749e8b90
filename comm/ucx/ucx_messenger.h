// Internal to comm/ucx: the messenger over a UcxTransport. A connection is one link for each
// direction: the side that connects sends its address first, and the other side connects back.
// Thread rule: as messenger.h says.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>

#include "comm/drop_log.h"
#include "comm/message_assembler.h"
#include "comm/messenger.h"
#include "comm/ucx/ucx_transport.h"

namespace annulus {

// Of UcxAm::kMessenger: a piece of a message's data, which are its body, if that is too long for a
// header (kUcxBodyBytesMax), then its payload. A shorter body is in the header of the first piece.
struct MessengerHeader {
  enum Kind : uint8_t {
    kMessage,
    kHello,    // the opener's first: its text is the sender's address
    kGoodbye,  // the sender disconnected
  };

  LinkKey key;
  uint64_t number;  // the opener's, of the connection
  uint64_t sequence;
  uint64_t offset;
  uint64_t body_bytes;  // of the data
  uint64_t payload_bytes;
  uint32_t type;
  uint8_t kind;
  uint8_t to_opener;
  uint8_t padding[2];
};

class UcxMessenger final : public Messenger {
 public:
  explicit UcxMessenger(UcxTransport& transport);

  void SetHandlers(Handlers handlers) override { handlers_ = std::move(handlers); }
  std::string address() const override { return transport_.address().ToString(); }
  using Messenger::Connect;
  absl::StatusOr<PeerId> Connect(absl::string_view address, const LinkKey& key) override;
  void SetDoor(PeerDoor door) override;
  void AdmitKey(const LinkKey& key) override;
  void DismissKey(const LinkKey& key) override;
  absl::StatusOr<LinkKey> KeyOf(PeerId peer) const override;
  void Trust(PeerId peer) override;
  absl::Status Send(PeerId peer, Message message) override;
  void Disconnect(PeerId peer) override;
  void Wait(absl::Duration wait) override;
  int Deliver() override;
  void Wake() override { transport_.Wake(); }
  Counters counters() const override;

 private:
  // A connection's name, which only its two ends know: its key, its number, and which end of it we
  // are. Half of the key orders connections, and the whole is compared in constant time.
  struct Key {
    LinkKey secret;
    uint64_t number;
    bool opener;

    bool operator<(const Key& other) const { return Order() < other.Order(); }
    std::tuple<uint64_t, uint64_t, bool> Order() const;
  };

  struct Peer {
    Peer(const Key& key, const MessageAssembler::Limits& limits, ByteBudget* all)
        : key(key), pieces(limits, kUcxChunkBytes, all) {}

    const Key key;
    PeerId id = 0;  // 0 until it is connected to or has spoken
    std::shared_ptr<UcxLink> link;
    uint64_t next_out = 0;  // the sequence number of the next message
    MessageAssembler pieces;
    bool greeted = false;    // ours to open, or it has sent its address
    uint64_t stranger = 0;   // its place among the strangers; 0: it is none
    bool trusted = false;    // ours to open, or the owner has said so
    size_t announced = 0;    // of its messages that are ready: in arrivals_
    int age = 0;             // sweeps that it has been a stranger for, but for its message's wait
    bool condemned = false;  // to be dropped, for this reason
    bool told = false;       // the owner hears of that
    absl::Status why;
    absl::Time part_told = absl::InfinitePast();
  };

  // What Deliver tells: a message of the peer's, a part of one, or, with a reason, that it is down.
  struct Arrival {
    PeerId from;
    absl::Status why;
    bool part = false;
  };

  MessageAssembler::Limits LimitsOf(bool stranger) const;
  void OnPiece(absl::Span<const std::byte> header, absl::Span<const std::byte> data);
  Peer* FindOrMeet(const Key& key);
  void TakeReady(Peer& peer);
  void TellPart(Peer& peer);
  absl::Status Greet(Peer& peer, absl::string_view address);
  void Attach(Peer& peer, UcxAddress remote);
  void OnLinkDown(const Key& key, const absl::Status& why);
  void Condemn(Peer& peer, absl::Status why);
  void DropCondemned();
  void EndStranger(Peer& peer);
  void Sweep();
  void Forget(const Key& key);
  void Transmit(Peer& peer, uint8_t kind, Message message);
  void SayGoodbye(Peer& peer);

  UcxTransport& transport_;
  const PeerLimits limits_;
  Handlers handlers_;
  PeerDoor door_ = PeerDoor::kStrangers;
  KeyRing admitted_;
  PeerId last_peer_ = 0;
  ByteBudget held_;  // by all peers
  std::map<Key, Peer> peers_;
  std::map<PeerId, Key> keys_;  // the living peers
  std::set<Key> closed_;        // accepted once and down: what still comes is dropped
  std::deque<Key> closed_order_;
  std::map<uint64_t, Key> strangers_;  // oldest first
  uint64_t last_stranger_ = 0;
  bool condemned_ = false;  // some peer is
  std::deque<Arrival> arrivals_;
  absl::Time next_sweep_ = absl::InfinitePast();
  DropLog drops_;
  Counters counters_;
};

}  // namespace annulus
