#include "comm/ucx/ucx_messenger.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr uint8_t kMessage = 0;
constexpr uint8_t kHello = 1;    // its text is the sender's address
constexpr uint8_t kGoodbye = 2;  // the sender disconnected

// How many connections that are over we recognise. What still comes from one was sent before the
// other side saw our goodbye, so few are needed.
constexpr size_t kClosedMax = 4096;

// Of UcxAm::kMessenger: a piece of a message's data, which are its body, if that is too long for a
// header (kUcxBodyBytesMax), then its payload. A shorter body is in the header of the first piece.
struct MessengerHeader {
  uint64_t fabric;  // of the connection's opener
  uint64_t number;  // the opener's count of connections
  uint64_t sequence;
  uint64_t offset;
  uint64_t body_bytes;  // of the data
  uint64_t payload_bytes;
  uint32_t type;
  uint8_t kind;
  uint8_t to_opener;
  uint8_t padding[2];
};

}  // namespace

UcxMessenger::UcxMessenger(UcxTransport& transport) : transport_(transport) {
  const auto lock = transport_.Lock();
  transport_.SetReceiver(UcxAm::kMessenger,
                         [this](absl::Span<const std::byte> header,
                                absl::Span<const std::byte> data) { OnMessage(header, data); });
}

absl::StatusOr<PeerId> UcxMessenger::Connect(absl::string_view address) {
  ANNULUS_ASSIGN_OR_RETURN(UcxAddress remote, UcxAddress::Parse(address));
  const auto lock = transport_.Lock();
  const Key key{transport_.address().fabric, ++last_number_, true};
  Peer& peer = peers_[key];
  peer.key = key;
  peer.id = ++last_peer_;
  keys_.emplace(peer.id, key);
  const PeerId id = peer.id;
  Attach(peer, std::move(remote));
  Message hello;
  hello.body = transport_.address().ToString();
  Transmit(peer, kHello, std::move(hello));
  transport_.WakeIfAsleep();
  return id;
}

void UcxMessenger::Attach(Peer& peer, UcxAddress remote) {
  peer.link = transport_.Connect(std::move(remote));
  peer.link->on_down = [this, key = peer.key](const absl::Status& why) { OnLinkDown(key, why); };
}

absl::Status UcxMessenger::Send(PeerId peer, Message message) {
  const auto lock = transport_.Lock();
  const auto it = keys_.find(peer);
  if (it == keys_.end()) {
    return absl::NotFoundError(absl::StrCat("peer ", peer, " is down or unknown"));
  }
  Peer& to = peers_.at(it->second);
  const size_t size_bytes = message.payload.size();
  const size_t body_bytes = message.body.size() > kUcxBodyBytesMax ? message.body.size() : 0;
  const size_t queued_bytes = to.link->unsent_bytes();
  const size_t limit = transport_.options().queue_bytes_max;
  if (queued_bytes != 0 && queued_bytes + size_bytes + body_bytes > limit) {
    return absl::ResourceExhaustedError(absl::StrCat("peer ", peer, ": ", queued_bytes,
                                                     " bytes are queued, ", size_bytes,
                                                     " more exceed the limit of ", limit));
  }
  counters_.bytes_sent += size_bytes;
  ++counters_.messages_sent;
  Transmit(to, kMessage, std::move(message));
  // What UCX has taken whole needs nobody to push it on.
  if (!to.link->idle()) transport_.WakeIfAsleep();
  return absl::OkStatus();
}

void UcxMessenger::Transmit(Peer& peer, uint8_t kind, Message message) {
  MessengerHeader piece = {};
  piece.fabric = peer.key.fabric;
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
    const size_t at = piece.offset - (in_body ? 0 : body.size());
    UcxSend send;
    send.am = UcxAm::kMessenger;
    send.header = UcxHeader(piece, piece.offset == 0 ? message.body : std::string());
    send.size_bytes = std::min<size_t>(kUcxChunkBytes, part.size() - at);
    if (send.size_bytes != 0) send.data = part.data() + at;
    send.keep = part;
    piece.offset += send.size_bytes;
    peer.link->Send(std::move(send));
  } while (piece.offset < data_bytes);
}

void UcxMessenger::Disconnect(PeerId peer) {
  const auto lock = transport_.Lock();
  const auto it = keys_.find(peer);
  if (it == keys_.end()) return;
  const Key key = it->second;
  MessengerHeader piece = {};
  piece.fabric = key.fabric;
  piece.number = key.number;
  piece.kind = kGoodbye;
  piece.to_opener = !key.opener;
  peers_.at(key).link->Close(UcxAm::kMessenger, UcxHeader(piece));
  Forget(key);
  transport_.WakeIfAsleep();
}

void UcxMessenger::OnMessage(absl::Span<const std::byte> header, absl::Span<const std::byte> data) {
  MessengerHeader piece;
  if (header.size() < sizeof piece) return;
  std::memcpy(&piece, header.data(), sizeof piece);
  const Key key{piece.fabric, piece.number, piece.to_opener != 0};
  auto it = peers_.find(key);
  if (it == peers_.end()) {
    // Ours to open, or over: nothing to say to it.
    if (key.opener || closed_.count(key) != 0 || piece.kind == kGoodbye) return;
    it = peers_.emplace(key, Peer{.key = key}).first;
  }
  Peer& peer = it->second;
  if (piece.kind == kGoodbye) {
    if (peer.link != nullptr) {
      peer.link->Leave(absl::UnavailableError("the other side disconnected"));
    }
    return;
  }
  // Where the piece lies: in one of the two, whole.
  const bool in_body = piece.offset < piece.body_bytes;
  const uint64_t at = piece.offset - (in_body ? 0 : piece.body_bytes);
  const uint64_t part_bytes = in_body ? piece.body_bytes : piece.payload_bytes;
  if (data.size() > part_bytes || at > part_bytes - data.size()) return;
  Incoming& incoming = peer.incoming[piece.sequence];
  if (!incoming.begun) {
    incoming.begun = true;
    incoming.message.body.resize(piece.body_bytes);
    if (piece.payload_bytes != 0) incoming.message.payload = Buffer(piece.payload_bytes);
    incoming.data_bytes = piece.body_bytes + piece.payload_bytes;
  }
  if (piece.offset == 0) {
    incoming.has_header = true;
    incoming.is_hello = piece.kind == kHello;
    incoming.message.type = piece.type;
    const auto text = header.subspan(sizeof piece);
    if (piece.body_bytes == 0) {
      incoming.message.body.assign(reinterpret_cast<const char*>(text.data()), text.size());
    }
  }
  if (!data.empty() && in_body) {
    std::memcpy(incoming.message.body.data() + at, data.data(), data.size());
  } else if (!data.empty()) {
    std::memcpy(incoming.message.payload.data() + at, data.data(), data.size());
  }
  incoming.received_bytes += data.size();
  TakeComplete(peer);
}

// UCX keeps no order between messages of different sizes, so messages wait here for their turn.
void UcxMessenger::TakeComplete(Peer& peer) {
  for (auto it = peer.incoming.begin(); it != peer.incoming.end() && it->first == peer.next_in;
       it = peer.incoming.begin()) {
    Incoming& incoming = it->second;
    if (!incoming.has_header || incoming.received_bytes < incoming.data_bytes) return;
    ++peer.next_in;
    if (incoming.is_hello) {
      Greet(peer, incoming.message.body);
    } else if (peer.link != nullptr) {
      if (peer.id == 0) {
        peer.id = ++last_peer_;
        keys_.emplace(peer.id, peer.key);
      }
      arrivals_.push_back({peer.id, std::move(incoming.message), absl::OkStatus()});
    }
    peer.incoming.erase(it);
  }
}

void UcxMessenger::Greet(Peer& peer, absl::string_view address) {
  absl::StatusOr<UcxAddress> remote = UcxAddress::Parse(address);
  // Without a way back there is no peer: what it says is dropped.
  if (remote.ok() && peer.link == nullptr) Attach(peer, *std::move(remote));
}

void UcxMessenger::OnLinkDown(Key key, const absl::Status& why) {
  const Peer& peer = peers_.at(key);
  if (peer.id == 0) {
    Forget(key);
  } else {
    arrivals_.push_back({peer.id, std::nullopt, why});
  }
}

void UcxMessenger::Forget(const Key& key) {
  const auto it = peers_.find(key);
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
  transport_.Wait(wait, [this] { return !arrivals_.empty(); });
}

int UcxMessenger::Deliver() {
  int handled = 0;
  for (;;) {
    Arrival arrival;
    {
      const auto lock = transport_.Lock();
      if (arrivals_.empty()) return handled;
      arrival = std::move(arrivals_.front());
      arrivals_.pop_front();
      const auto it = keys_.find(arrival.from);
      if (it == keys_.end()) continue;  // disconnected meanwhile
      if (arrival.message) {
        counters_.bytes_received += arrival.message->payload.size();
        ++counters_.messages_received;
      } else {
        Forget(Key(it->second));
      }
    }
    ++handled;
    if (arrival.message) {
      handlers_.on_message(arrival.from, *std::move(arrival.message));
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
