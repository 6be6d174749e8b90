// What comes: pieces of messages, from peers and strangers, and what becomes of those whose pieces
// or silence cannot be borne.
#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "comm/ucx/ucx_messenger.h"

namespace annulus {
namespace {

// Messages that may be begun beyond the one that is due: more than UCX has on the way.
constexpr uint64_t kAheadMax = 1 << 14;

// The transport's greeting, and one message.
constexpr uint64_t kStrangerMessagesMax = 2;

// How often the owner hears of a long message's parts.
constexpr absl::Duration kPartPeriod = absl::Milliseconds(50);

// Links that open or close at once. Beyond it nobody is greeted: what strangers give as their
// address may be a place that answers nobody.
constexpr size_t kHalfOpenMax = 4096;

absl::Duration SweepPeriod(const PeerLimits& limits) {
  const absl::Duration shortest = std::min(limits.stranger_time, limits.half_message_time);
  return std::min(absl::Seconds(1), shortest / 4);
}

// Sweeps that make this time.
int64_t SweepsIn(absl::Duration time, const PeerLimits& limits) {
  absl::Duration rest;
  return absl::IDivDuration(time, SweepPeriod(limits), &rest) + 1;
}

}  // namespace

MessageAssembler::Limits UcxMessenger::LimitsOf(bool stranger) const {
  if (stranger) {
    return {.message_bytes_max = kStrangerBytesMax,
            .text_bytes_max = kUcxBodyBytesMax,
            .messages_max = kStrangerMessagesMax,
            .ahead_max = kStrangerMessagesMax,
            .held_bytes_max = 2 * kStrangerBytesMax};
  }
  return {.message_bytes_max = limits_.message_bytes_max,
          .text_bytes_max = kUcxBodyBytesMax,
          .messages_max = std::numeric_limits<uint64_t>::max(),
          .ahead_max = kAheadMax,
          .held_bytes_max = limits_.peer_bytes_max};
}

void UcxMessenger::EndStranger(Peer& peer) {
  if (peer.stranger == 0) return;
  peer.trusted = true;
  strangers_.erase(std::exchange(peer.stranger, 0));
  peer.pieces.SetLimits(LimitsOf(/*stranger=*/false));
}

// Whose piece this is: somebody we know, or a stranger whom the door lets in. Null: nobody's whom
// we hear.
UcxMessenger::Peer* UcxMessenger::FindOrMeet(const Key& key) {
  const auto it = peers_.find(key);
  if (it != peers_.end()) return it->first.secret == key.secret ? &it->second : nullptr;
  // Ours to open, or over: nothing to say to it.
  if (key.opener || closed_.count(key) != 0) return nullptr;
  if (door_ == PeerDoor::kKeys && !admitted_.Has(key.secret)) {
    drops_.Note(absl::PermissionDeniedError("its key opens no door here"));
    return nullptr;
  }
  const bool stranger = door_ == PeerDoor::kStrangers;
  if (stranger) strangers_.emplace(++last_stranger_, key);
  Peer& peer = peers_.try_emplace(key, key, LimitsOf(stranger), &held_).first->second;
  if (!stranger) {
    peer.trusted = true;
    return &peer;
  }
  peer.stranger = last_stranger_;
  while (strangers_.size() > limits_.strangers_max) {
    const auto oldest = peers_.find(strangers_.begin()->second);
    strangers_.erase(strangers_.begin());
    if (oldest == peers_.end()) continue;  // there was no memory for it
    oldest->second.stranger = 0;
    Condemn(oldest->second,
            absl::ResourceExhaustedError(absl::StrCat("strangers_max: ", limits_.strangers_max,
                                                      "; as many in use, a new one needs 1 more")));
  }
  return &peer;
}

void UcxMessenger::OnPiece(absl::Span<const std::byte> header, absl::Span<const std::byte> data) {
  MessengerHeader fields;
  if (header.size() < sizeof fields) return;
  std::memcpy(&fields, header.data(), sizeof fields);
  const Key key{fields.key, fields.number, fields.to_opener != 0};
  if (fields.kind == MessengerHeader::kGoodbye && peers_.find(key) == peers_.end()) return;
  Peer* const peer = FindOrMeet(key);
  if (peer == nullptr || peer->condemned) return;
  if (fields.kind == MessengerHeader::kGoodbye) {
    if (peer->link != nullptr) {
      peer->link->Leave(absl::UnavailableError("the other side disconnected"));
    }
    return;
  }
  const bool greets = fields.sequence == 0 && !key.opener;
  if (fields.kind != (greets ? MessengerHeader::kHello : MessengerHeader::kMessage)) {
    return Condemn(
        *peer, absl::InvalidArgumentError(absl::StrCat("piece.kind: ", fields.kind,
                                                       "; expected a greeting, then messages")));
  }
  const auto text = header.subspan(sizeof fields);
  const absl::Status status =
      peer->pieces.Add({fields.sequence,
                        fields.offset,
                        fields.body_bytes,
                        fields.payload_bytes,
                        fields.type,
                        {reinterpret_cast<const char*>(text.data()), text.size()},
                        data});
  if (!status.ok()) return Condemn(*peer, status);
  if (peer->id != 0 && peer->announced == peer->pieces.ready()) return TellPart(*peer);
  TakeReady(*peer);
}

void UcxMessenger::TellPart(Peer& peer) {
  if (!handlers_.on_part) return;
  const absl::Time now = absl::Now();
  if (now - peer.part_told < kPartPeriod) return;
  peer.part_told = now;
  arrivals_.push_back({peer.id, absl::OkStatus(), /*part=*/true});
}

// The other side's greeting is its first message, and of no use to our owner.
void UcxMessenger::TakeReady(Peer& peer) {
  if (!peer.greeted && peer.pieces.ready() > 0) {
    const absl::Status status = Greet(peer, peer.pieces.Take().body);
    if (!status.ok()) return Condemn(peer, status);
  }
  for (; peer.announced < peer.pieces.ready(); ++peer.announced) {
    if (peer.id == 0) {
      peer.id = ++last_peer_;
      keys_.emplace(peer.id, peer.key);
    }
    arrivals_.push_back({peer.id, absl::OkStatus()});
  }
}

absl::Status UcxMessenger::Greet(Peer& peer, absl::string_view address) {
  // Without a way back there is no peer.
  ANNULUS_ASSIGN_OR_RETURN(UcxAddress remote, UcxAddress::Parse(address));
  if (transport_.half_open() >= kHalfOpenMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("links that open or close: ", transport_.half_open(), "; expected at most ",
                     kHalfOpenMax, " (half_open_max)"));
  }
  peer.greeted = true;
  Attach(peer, std::move(remote));
  return absl::OkStatus();
}

// UCX is not to be asked to close anything inside its progress, so the rest follows after it.
void UcxMessenger::Condemn(Peer& peer, absl::Status why) {
  condemned_ = peer.condemned = true;
  peer.why = std::move(why);
  if (peer.stranger != 0) strangers_.erase(std::exchange(peer.stranger, 0));
}

void UcxMessenger::DropCondemned() {
  if (!std::exchange(condemned_, false)) return;
  std::vector<Key> unheard;
  for (auto& [key, peer] : peers_) {
    if (!peer.condemned || std::exchange(peer.told, true)) continue;
    if (!peer.trusted) drops_.Note(peer.why);  // of others the owner tells
    SayGoodbye(peer);
    if (peer.id == 0) {
      unheard.push_back(key);
    } else {
      arrivals_.push_back({peer.id, absl::UnavailableError(peer.why.message())});
    }
  }
  for (const Key& key : unheard) Forget(key);
}

// Time passes for peers only here, so that none passes while nobody polls.
void UcxMessenger::Sweep() {
  const absl::Time now = absl::Now();
  if (now < next_sweep_) return;
  next_sweep_ = now + SweepPeriod(limits_);
  const int64_t stranger_age_max = SweepsIn(limits_.stranger_time, limits_);
  const int64_t quiet_max = SweepsIn(limits_.half_message_time, limits_);
  for (auto& [key, peer] : peers_) {
    if (peer.condemned) continue;
    if (peer.pieces.Quiet() > quiet_max) {
      Condemn(peer, absl::DeadlineExceededError(absl::StrCat(
                        "half a message, and nothing more for ",
                        absl::FormatDuration(limits_.half_message_time), " (half_message_time)")));
    } else if (peer.stranger != 0 && peer.announced == 0 && ++peer.age > stranger_age_max) {
      Condemn(peer, absl::DeadlineExceededError(
                        absl::StrCat("a stranger for ", absl::FormatDuration(limits_.stranger_time),
                                     " (stranger_time)")));
    }
  }
}

}  // namespace annulus
