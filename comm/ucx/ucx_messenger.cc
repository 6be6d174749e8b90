#include "comm/ucx/ucx_messenger.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"

namespace annulus {
namespace {

// How many connections that are over we recognise. What still comes from one was sent before the
// other side saw our goodbye, so few are needed.
constexpr size_t kClosedMax = 512;

}  // namespace

std::tuple<uint64_t, uint64_t, bool> UcxMessenger::Key::Order() const {
  uint64_t half = 0;
  std::memcpy(&half, secret.bytes.data(), sizeof half);
  return {half, number, opener};
}

UcxMessenger::UcxMessenger(UcxTransport& transport)
    : transport_(transport), limits_(transport.options().peers), held_(limits_.all_bytes_max) {
  const auto lock = transport_.Lock();
  transport_.SetReceiver(UcxAm::kMessenger,
                         [this](absl::Span<const std::byte> header,
                                absl::Span<const std::byte> data) { OnPiece(header, data); });
}

absl::StatusOr<PeerId> UcxMessenger::Connect(absl::string_view address, const LinkKey& secret) {
  ANNULUS_ASSIGN_OR_RETURN(UcxAddress remote, UcxAddress::Parse(address));
  const auto lock = transport_.Lock();
  const Key key{secret, RandomSecret(), true};
  Peer& peer = peers_.try_emplace(key, key, LimitsOf(/*stranger=*/false), &held_).first->second;
  peer.greeted = peer.trusted = true;
  peer.id = ++last_peer_;
  keys_.emplace(peer.id, key);
  const PeerId id = peer.id;
  Attach(peer, std::move(remote));
  Message hello;
  hello.body = transport_.address().ToString();
  Transmit(peer, MessengerHeader::kHello, std::move(hello));
  transport_.WakeIfAsleep();
  return id;
}

void UcxMessenger::Attach(Peer& peer, UcxAddress remote) {
  peer.link = transport_.Connect(std::move(remote));
  peer.link->on_down = [this, key = peer.key](const absl::Status& why) { OnLinkDown(key, why); };
}

void UcxMessenger::SetDoor(PeerDoor door) {
  const auto lock = transport_.Lock();
  door_ = door;
}

void UcxMessenger::AdmitKey(const LinkKey& key) {
  const auto lock = transport_.Lock();
  admitted_.Add(key);
}

void UcxMessenger::DismissKey(const LinkKey& key) {
  const auto lock = transport_.Lock();
  admitted_.Remove(key);
}

absl::StatusOr<LinkKey> UcxMessenger::KeyOf(PeerId peer) const {
  const auto lock = transport_.Lock();
  const auto it = keys_.find(peer);
  if (it != keys_.end()) return it->second.secret;
  return absl::NotFoundError(absl::StrCat("peer ", peer, " is down or unknown"));
}

void UcxMessenger::Trust(PeerId peer) {
  const auto lock = transport_.Lock();
  const auto it = keys_.find(peer);
  if (it != keys_.end()) EndStranger(peers_.at(it->second));
}

absl::Status UcxMessenger::Send(PeerId peer, Message message) {
  const auto lock = transport_.Lock();
  const auto it = keys_.find(peer);
  if (it == keys_.end()) {
    return absl::NotFoundError(absl::StrCat("peer ", peer, " is down or unknown"));
  }
  Peer& to = peers_.at(it->second);
  const size_t size_bytes = message.payload.size();
  if (message.body.size() + size_bytes > limits_.message_bytes_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("message bytes: ", message.body.size() + size_bytes, "; expected at most ",
                     limits_.message_bytes_max, " (message_bytes_max)"));
  }
  const size_t body_bytes = message.body.size() > kUcxBodyBytesMax ? message.body.size() : 0;
  const size_t queued_bytes = to.link->unsent_bytes();
  const size_t limit = transport_.options().queue_bytes_max;
  if (queued_bytes != 0 && queued_bytes + size_bytes + body_bytes > limit) {
    return absl::ResourceExhaustedError(absl::StrCat("queue_bytes_max: ", limit, "; ", queued_bytes,
                                                     " in use for peer ", peer,
                                                     ", this message needs ", size_bytes, " more"));
  }
  counters_.bytes_sent += size_bytes;
  ++counters_.messages_sent;
  Transmit(to, MessengerHeader::kMessage, std::move(message));
  // What UCX has taken whole needs nobody to push it on.
  if (!to.link->idle()) transport_.WakeIfAsleep();
  return absl::OkStatus();
}

void UcxMessenger::Transmit(Peer& peer, uint8_t kind, Message message) {
  MessengerHeader piece = {};
  piece.key = peer.key.secret;
  piece.number = peer.key.number;
  piece.sequence = peer.next_out++;
  piece.payload_bytes = message.payload.size();
  piece.type = message.type;
  piece.kind = kind;
  piece.to_opener = !peer.key.opener;
  Buffer body;
  if (message.body.size() > kUcxBodyBytesMax) {
    body = Buffer::Copy(message.body.data(), message.body.size());
    message.body.clear();
  }
  piece.body_bytes = body.size();
  const size_t data_bytes = body.size() + message.payload.size();
  do {
    const bool in_body = piece.offset < body.size();
    const Buffer& part = in_body ? body : message.payload;
    UcxSend send;
    send.am = UcxAm::kMessenger;
    send.header = UcxHeader(piece, piece.offset == 0 ? message.body : std::string());
    send.size_bytes =
        PieceBytesAt(piece.offset, body.size(), message.payload.size(), kUcxChunkBytes);
    if (send.size_bytes != 0) {
      send.data = part.data() + (piece.offset - (in_body ? 0 : body.size()));
    }
    send.keep = part;
    piece.offset += send.size_bytes;
    peer.link->Send(std::move(send));
  } while (piece.offset < data_bytes);
}

void UcxMessenger::SayGoodbye(Peer& peer) {
  if (peer.link == nullptr) return;
  MessengerHeader piece = {};
  piece.key = peer.key.secret;
  piece.number = peer.key.number;
  piece.kind = MessengerHeader::kGoodbye;
  piece.to_opener = !peer.key.opener;
  peer.link->Close(UcxAm::kMessenger, UcxHeader(piece));
}

void UcxMessenger::Disconnect(PeerId peer) {
  const auto lock = transport_.Lock();
  const auto it = keys_.find(peer);
  if (it == keys_.end()) return;
  const Key key = it->second;
  SayGoodbye(peers_.at(key));
  Forget(key);
  transport_.WakeIfAsleep();
}

void UcxMessenger::OnLinkDown(const Key& key, const absl::Status& why) {
  const Peer& peer = peers_.at(key);
  if (peer.id == 0) {
    Forget(Key(key));
  } else {
    arrivals_.push_back({peer.id, why});
  }
}

void UcxMessenger::Forget(const Key& key) {
  const auto it = peers_.find(key);
  if (it->second.stranger != 0) strangers_.erase(it->second.stranger);
  keys_.erase(it->second.id);
  peers_.erase(it);
  if (key.opener) return;  // its number is never used again
  closed_.insert(key);
  closed_order_.push_back(key);
  if (closed_order_.size() > kClosedMax) {
    closed_.erase(closed_order_.front());
    closed_order_.pop_front();
  }
}

void UcxMessenger::Wait(absl::Duration wait) {
  transport_.Wait(wait, [this] {
    Sweep();
    DropCondemned();
    return !arrivals_.empty();
  });
}

int UcxMessenger::Deliver() {
  int handled = 0;
  for (;;) {
    Arrival arrival;
    Message message;
    {
      const auto lock = transport_.Lock();
      if (arrivals_.empty()) return handled;
      arrival = std::move(arrivals_.front());
      arrivals_.pop_front();
      const auto it = keys_.find(arrival.from);
      if (it == keys_.end()) continue;  // disconnected meanwhile
      if (arrival.part) {
        // Nothing is to be taken.
      } else if (arrival.why.ok()) {
        Peer& peer = peers_.at(it->second);
        message = peer.pieces.Take();
        --peer.announced;
        peer.age = 0;
        counters_.bytes_received += message.payload.size();
        ++counters_.messages_received;
      } else {
        Forget(Key(it->second));
      }
    }
    ++handled;
    if (arrival.part) {
      handlers_.on_part(arrival.from);
    } else if (arrival.why.ok()) {
      handlers_.on_message(arrival.from, std::move(message));
    } else {
      handlers_.on_peer_down(arrival.from, std::move(arrival.why));
    }
  }
}

Messenger::Counters UcxMessenger::counters() const {
  const auto lock = transport_.Lock();
  return counters_;
}

}  // namespace annulus
