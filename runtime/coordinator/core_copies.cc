// Which workers hold a context.
#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/coordinator/core.h"

namespace annulus {

// A new context takes all ready workers: one for each rank, or a pair. Contexts begin at different
// workers, so that those of a pair that answer queries are not always the same.
absl::Status CoordinatorCore::Place(ShardMap& map) const {
  std::vector<WorkerId> ready;
  for (const auto& [peer, id] : peers_) {
    if (workers_.at(id).status.state == "ready") ready.push_back(id);
  }
  if (ready.empty()) {
    return absl::UnavailableError("no worker is ready; retry once one has joined");
  }
  const auto replicas = static_cast<size_t>(map.spec.replicas);
  if (ready.size() < replicas) {
    return absl::FailedPreconditionError(
        absl::StrCat("replicas is ", replicas, ", but only ", ready.size(), " worker is ready"));
  }
  std::sort(ready.begin(), ready.end());
  if (replicas > 1) {
    std::rotate(ready.begin(), ready.begin() + static_cast<int64_t>(map.context % ready.size()),
                ready.end());
  }
  map.world = static_cast<int>(ready.size() / replicas);
  for (size_t i = 0; i < static_cast<size_t>(map.world) * replicas; ++i) {
    map.holders.push_back({ready[i], static_cast<int>(i / replicas)});
  }
  Arrange(map);
  return absl::OkStatus();
}

// Puts the first holder of each rank in its place as the one that answers. False if some rank has
// none.
bool CoordinatorCore::Arrange(ShardMap& map) {
  std::vector<Holder> answering(static_cast<size_t>(map.world));
  std::vector<Holder> copies;
  for (const Holder& holder : map.holders) {
    Holder& first = answering[static_cast<size_t>(holder.rank)];
    if (first.worker == 0) {
      first = holder;
    } else {
      copies.push_back(holder);
    }
  }
  const bool whole = std::all_of(answering.begin(), answering.end(),
                                 [](const Holder& holder) { return holder.worker != 0; });
  if (!whole) return false;
  map.holders = std::move(answering);
  map.holders.insert(map.holders.end(), copies.begin(), copies.end());
  return true;
}

std::pair<std::vector<std::string>, std::vector<wire::Copy>> CoordinatorCore::AddressesOf(
    const ShardMap& map) const {
  std::vector<std::string> addresses;
  std::vector<wire::Copy> copies;
  for (const Holder& holder : map.holders) {
    const std::string& address = workers_.at(holder.worker).status.address;
    if (std::ssize(addresses) < map.world) {
      addresses.push_back(address);
    } else {
      copies.push_back({holder.rank, address});
    }
  }
  return {std::move(addresses), std::move(copies)};
}

// That the context goes on as the map says, with what is committed.
wire::Resume CoordinatorCore::ResumeOf(const ShardMap& map,
                                       const std::vector<Layer>& layers) const {
  wire::Resume resume{map.epoch, map.storage, {}, {}};
  std::tie(resume.addresses, resume.copies) = AddressesOf(map);
  for (const Layer& layer : layers) {
    resume.layers.push_back(
        {layer.tokens, layer.horizon, {layer.turn, layer.last_key}, layer.last_tokens});
  }
  resume.serves = map.context;
  return resume;
}

}  // namespace annulus
