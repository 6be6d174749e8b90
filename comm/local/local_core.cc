#include "comm/local/local_core.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "comm/exchange_checks.h"

namespace annulus {
namespace {

constexpr absl::string_view kPrefix = "local:";

// Exchanges that are kept for members which have yet to open them; who opens one later than that
// waits until its deadline where it might have heard that the others are gone.
constexpr size_t kEarlyMax = 4096;

}  // namespace

LocalCore::LocalCore(LocalNetworkOptions options)
    : options_(std::move(options)),
      simulated_(options_.simulation.has_value()),
      rng_(simulated_ ? options_.simulation->seed : 0) {
  if (simulated_) clock_.now = options_.simulation->start;
}

LocalCore::~LocalCore() {
  ANNULUS_CHECK(living_.empty());
}

absl::StatusOr<std::shared_ptr<LocalNode>> LocalCore::AddNode(absl::string_view name) {
  auto node = std::make_shared<LocalNode>();
  node->address = absl::StrCat(kPrefix, name);
  std::lock_guard<std::mutex> lock(mutex_);
  if (!living_.emplace(node->address, node).second) {
    return absl::InvalidArgumentError(
        absl::StrCat("fabric name: ", name, "; expected one that no living fabric has"));
  }
  return node;
}

void LocalCore::Kill(LocalNode& node, absl::string_view why) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!node.alive) return;
  node.alive = false;
  for (const std::shared_ptr<LocalLink>& link : links_) {
    for (int end = 0; end < 2; ++end) {
      if (link->ends[end].node.get() != &node || link->ends[end].closed) continue;
      link->ends[end].closed = true;
      link->cut = true;
      ReportDown(link, 1 - end, why);
    }
  }
  FailExchangesOf(node, why);
  node.inbox.clear();
  node.peers.clear();
  node.ready.notify_all();
  living_.erase(node.address);
}

void LocalCore::Crash(absl::string_view address) {
  std::shared_ptr<LocalNode> node;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto it = living_.find(address);
    ANNULUS_CHECK(it != living_.end());
    node = it->second;
  }
  Kill(*node, "it crashed");
}

absl::StatusOr<PeerId> LocalCore::Connect(const std::shared_ptr<LocalNode>& node,
                                          absl::string_view address, const LinkKey& key) {
  if (!absl::StartsWith(address, kPrefix)) {
    return absl::InvalidArgumentError(
        absl::StrCat("address: ", absl::CHexEscape(address.substr(0, 80)),
                     "; expected one of this network: ", kPrefix, "NAME"));
  }
  std::lock_guard<std::mutex> lock(mutex_);
  auto link = std::make_shared<LocalLink>();
  link->key = key;
  const PeerId peer = ++node->last_peer;
  link->ends[0].node = node;
  link->ends[0].peer = peer;
  node->peers.emplace(peer, LocalNode::Place{link, 0});
  if (const auto it = living_.find(address); it != living_.end()) {
    link->ends[1].node = it->second;
  } else {
    link->ends[1].closed = true;
    link->cut = true;
    ReportDown(link, 0, absl::StrCat("nobody is at ", address));
  }
  std::erase_if(links_, [](const auto& old) { return old->ends[0].closed && old->ends[1].closed; });
  links_.push_back(std::move(link));
  return peer;
}

void LocalCore::SetDoor(LocalNode& node, PeerDoor door) {
  std::lock_guard<std::mutex> lock(mutex_);
  node.door = door;
}

void LocalCore::AdmitKey(LocalNode& node, const LinkKey& key, bool admitted) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (admitted) {
    node.admitted.Add(key);
  } else {
    node.admitted.Remove(key);
  }
}

absl::StatusOr<LinkKey> LocalCore::KeyOf(const LocalNode& node, PeerId peer) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = node.peers.find(peer);
  if (it != node.peers.end()) return it->second.link->key;
  return absl::NotFoundError(absl::StrCat("peer ", peer, " is down or unknown"));
}

void LocalCore::Trust(LocalNode& node, PeerId peer) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = node.peers.find(peer);
  if (it != node.peers.end()) it->second.link->ends[it->second.end].stranger = false;
}

absl::Status LocalCore::Send(LocalNode& node, PeerId peer, Message message) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = node.peers.find(peer);
  if (it == node.peers.end()) {
    return absl::NotFoundError(absl::StrCat("peer ", peer, " is down or unknown"));
  }
  const std::shared_ptr<LocalLink> link = it->second.link;
  const int to = 1 - it->second.end;
  const size_t size_bytes = message.payload.size();
  const size_t queued_bytes = link->ends[to].queued_bytes;
  if (queued_bytes != 0 && queued_bytes + size_bytes > options_.queue_bytes_max) {
    return absl::ResourceExhaustedError(absl::StrCat("queue_bytes_max: ", options_.queue_bytes_max,
                                                     "; ", queued_bytes, " in use for peer ", peer,
                                                     ", this message needs ", size_bytes, " more"));
  }
  node.counters.bytes_sent += size_bytes;
  ++node.counters.messages_sent;
  if (link->cut) return absl::OkStatus();  // lost; the news of it is on its way
  if (simulated_ && rng_.Uniform() < options_.simulation->drop) {
    link->cut = true;
    for (int end = 0; end < 2; ++end) ReportDown(link, end, "the connection was lost");
    return absl::OkStatus();
  }
  link->ends[to].queued_bytes += size_bytes;
  Transmit({link, to, std::move(message), absl::OkStatus(), nullptr});
  return absl::OkStatus();
}

void LocalCore::Disconnect(LocalNode& node, PeerId peer) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = node.peers.find(peer);
  if (it == node.peers.end()) return;
  const LocalNode::Place place = it->second;
  node.peers.erase(it);
  place.link->ends[place.end].closed = true;
  if (!std::exchange(place.link->cut, true)) {
    ReportDown(place.link, 1 - place.end, "the other side disconnected");
  }
}

void LocalCore::ReportDown(const std::shared_ptr<LocalLink>& link, int to, absl::string_view why) {
  Transmit({link, to, std::nullopt, absl::UnavailableError(why), nullptr});
}

// Puts the event on its way; the order within a direction of a link is kept.
void LocalCore::Transmit(LocalEvent event) {
  LocalLink::End& end = event.link->ends[event.to];
  if (!simulated_) {
    if (end.closed) return;
    end.node->inbox.push_back(std::move(event));
    end.node->ready.notify_all();
    return;
  }
  const SimulationOptions& options = *options_.simulation;
  const int64_t spread_ns = absl::ToInt64Nanoseconds(options.delay_max - options.delay_min);
  absl::Duration delay = options.down_notice;
  if (event.message) delay = options.delay_min + absl::Nanoseconds(rng_.Between(0, spread_ns));
  const absl::Time when = std::max(clock_.now + delay, end.last_arrival);
  end.last_arrival = when;
  events_.emplace(Key{when, ++last_event_}, std::move(event));
}

// Whether the end that connected may say this: as messenger.h says of strangers.
bool LocalCore::Admits(const LocalEvent& event) {
  const LocalLink::End& end = event.link->ends[event.to];
  if (event.to == 0 || !event.message) return true;
  if (end.peer != 0) return !end.stranger;
  const size_t bytes = event.message->body.size() + event.message->payload.size();
  return end.node->door != PeerDoor::kStrangers || bytes <= kStrangerBytesMax;
}

void LocalCore::DropStranger(LocalEvent event) {
  LocalLink& link = *event.link;
  link.cut = true;
  event.message.reset();
  event.why = absl::UnavailableError("a stranger sent more than one short message");
  ReportDown(event.link, 0, "the other side disconnected");
  Transmit(std::move(event));
}

// Runs the handler of the event, if its end still listens.
bool LocalCore::Deliver(LocalEvent event, std::unique_lock<std::mutex>& lock) {
  LocalLink::End& end = event.link->ends[event.to];
  if (event.message) end.queued_bytes -= event.message->payload.size();
  if (end.closed) return false;
  LocalNode& node = *end.node;
  const bool first = event.message && end.peer == 0;
  if (first && node.door == PeerDoor::kKeys && !node.admitted.Has(event.link->key)) return false;
  if (!Admits(event)) {
    if (!event.link->cut) DropStranger(std::move(event));
    return false;
  }
  if (event.message) {
    if (end.peer == 0) {
      end.stranger = node.door == PeerDoor::kStrangers;
      end.peer = ++node.last_peer;
      node.peers.emplace(end.peer, LocalNode::Place{event.link, event.to});
    }
    node.counters.bytes_received += event.message->payload.size();
    ++node.counters.messages_received;
    const PeerId from = end.peer;
    lock.unlock();
    node.handlers.on_message(from, *std::move(event.message));
  } else {
    end.closed = true;
    const PeerId peer = end.peer;
    if (peer == 0) return false;  // it never spoke to us
    node.peers.erase(peer);
    lock.unlock();
    node.handlers.on_peer_down(peer, std::move(event.why));
  }
  lock.lock();
  return true;
}

void LocalCore::Wait(LocalNode& node, absl::Duration wait) {
  if (simulated_) return;
  std::unique_lock<std::mutex> lock(mutex_);
  const auto ready = [&] { return node.woken || !node.inbox.empty(); };
  wait = std::clamp(wait, absl::ZeroDuration(), absl::Hours(1));
  node.ready.wait_for(lock, absl::ToChronoNanoseconds(wait), ready);
  node.woken = false;
}

int LocalCore::Deliver(LocalNode& node) {
  std::unique_lock<std::mutex> lock(mutex_);
  int handled = 0;
  for (size_t due = node.inbox.size(); due > 0 && !node.inbox.empty(); --due) {
    LocalEvent event = std::move(node.inbox.front());
    node.inbox.pop_front();
    if (Deliver(std::move(event), lock)) ++handled;
  }
  return handled;
}

void LocalCore::Wake(LocalNode& node) {
  std::lock_guard<std::mutex> lock(mutex_);
  node.woken = true;
  node.ready.notify_all();
}

Messenger::Counters LocalCore::counters(const LocalNode& node) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return node.counters;
}

absl::StatusOr<std::unique_ptr<Exchange>> LocalCore::OpenExchange(
    LocalNode& node, uint64_t channel, int rank, absl::Span<const std::string> addresses) {
  ANNULUS_RETURN_IF_ERROR(CheckMembers(rank, addresses, node.address));
  std::lock_guard<std::mutex> lock(mutex_);
  if (!node.alive) return absl::UnavailableError("this fabric has crashed");
  Members& members = MembersOf(channel, addresses);
  const std::shared_ptr<LocalExchangeGroup> group = members.group.lock();
  if (absl::Span<const std::string>(members.addresses) != addresses || members.opened[rank]) {
    return absl::InvalidArgumentError(absl::StrCat(
        "channel: ", channel, "; expected one that is not used yet by others or by this rank"));
  }
  members.opened[rank] = &node;
  for (size_t other = 0; other < addresses.size(); ++other) {
    if (!members.opened[other] && living_.count(addresses[other]) == 0) {
      group->FailRank(static_cast<int>(other), absl::UnavailableError("nobody is there"));
    }
  }
  if (!std::count(members.opened.begin(), members.opened.end(), nullptr)) members.early.reset();
  return group->Open(rank);
}

// The exchange of that channel, made if it is not there. Those that never open everywhere would
// stay for good: beyond kEarlyMax the oldest are held by their members alone, as in PieceHub.
LocalCore::Members& LocalCore::MembersOf(uint64_t channel,
                                         absl::Span<const std::string> addresses) {
  if (const auto found = exchanges_.find(channel); found != exchanges_.end()) {
    if (!found->second.group.expired()) return found->second;
  }
  if (exchanges_.size() >= sweep_at_) {
    std::erase_if(exchanges_, [](const auto& entry) { return entry.second.group.expired(); });
    sweep_at_ = 2 * (exchanges_.size() + kEarlyMax);
  }
  early_order_.push_back(channel);
  if (early_order_.size() > kEarlyMax) {
    const auto oldest = exchanges_.find(early_order_.front());
    if (oldest != exchanges_.end()) oldest->second.early.reset();
    early_order_.pop_front();
  }
  auto group = LocalExchangeGroup::Create(static_cast<int>(addresses.size()));
  Members& members = exchanges_[channel];
  members = {{addresses.begin(), addresses.end()},
             std::vector<const LocalNode*>(addresses.size(), nullptr),
             group,
             group};
  return members;
}

void LocalCore::FailExchangesOf(const LocalNode& node, absl::string_view why) {
  for (auto& [channel, members] : exchanges_) {
    const std::shared_ptr<LocalExchangeGroup> group = members.group.lock();
    if (group == nullptr) continue;
    for (size_t rank = 0; rank < members.addresses.size(); ++rank) {
      const bool is_here = members.opened[rank] == nullptr ? members.addresses[rank] == node.address
                                                           : members.opened[rank] == &node;
      if (is_here) group->FailRank(static_cast<int>(rank), absl::UnavailableError(why));
    }
  }
}

}  // namespace annulus
