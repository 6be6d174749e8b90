#include "runtime/worker/peer_links.h"

#include <algorithm>
#include <utility>

namespace annulus {

bool PeerLinks::Send(const std::string& address, Message message) {
  auto link = links_.find(address);
  if (link == links_.end()) {
    const absl::StatusOr<PeerId> peer = messenger_.Connect(address, key_);
    if (!peer.ok()) return false;
    link = links_.emplace(address, *peer).first;
  }
  if (messenger_.Send(link->second, std::move(message)).ok()) return true;
  messenger_.Disconnect(link->second);
  links_.erase(link);
  return false;
}

bool PeerLinks::Forget(PeerId peer) {
  return std::erase_if(links_, [&](const auto& link) { return link.second == peer; }) != 0;
}

bool PeerLinks::Keep(Early early) {
  if (early_.size() >= kEarlyMax || early.payload.size() > kEarlyBytesMax - early_bytes_) {
    DropEarly();
    return false;
  }
  early_bytes_ += early.payload.size();
  const uint64_t request = early.body.request;
  early_.emplace(request, std::move(early));
  return true;
}

std::vector<PeerLinks::Early> PeerLinks::TakeEarly(uint64_t request) {
  std::vector<Early> taken;
  const auto [begin, end] = early_.equal_range(request);
  for (auto at = begin; at != end; ++at) {
    early_bytes_ -= at->second.payload.size();
    taken.push_back(std::move(at->second));
  }
  early_.erase(begin, end);
  return taken;
}

void PeerLinks::DropEarlyBefore(absl::Time time) {
  std::erase_if(early_, [&](const auto& entry) {
    if (entry.second.since >= time) return false;
    early_bytes_ -= entry.second.payload.size();
    return true;
  });
}

void PeerLinks::RenewEarly(absl::Time now) {
  for (auto& [request, early] : early_) early.since = now;
}

void PeerLinks::DropEarly() {
  early_.clear();
  early_bytes_ = 0;
}

}  // namespace annulus
