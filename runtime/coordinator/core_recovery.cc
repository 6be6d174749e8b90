// After a restart: contexts are rebuilt from what the workers that join again say they hold.
//
// Which tokens the ranks of a layer have alike: each rank has carried out a prefix of the same
// orders, and a rank whose last append has a later turn is ahead. When an append was sent, all
// tokens before its start were committed, so all ranks have those alike; of what comes from its
// start on, the ranks behind have nothing, or what was taken back since. So the layer is cut to the
// fewest tokens of any rank, and to the start of each last append that some rank does not know.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "runtime/coordinator/core.h"

namespace annulus {

// Why a call cannot have a context that is not there.
absl::Status CoordinatorCore::WhyUnknown(ContextId id) const {
  const auto found = recovering_.find(id);
  if (found != recovering_.end()) {
    return absl::UnavailableError(
        absl::StrCat("context ", id, " is being recovered: ", found->second.holders.size(), " of ",
                     found->second.world(), " workers are back; retry"));
  }
  if (id < incarnation_.number && InRecovery()) {
    return absl::UnavailableError(absl::StrCat("context ", id,
                                               " is not known yet: the coordinator has started "
                                               "anew and waits for workers; retry"));
  }
  return absl::NotFoundError(absl::StrCat("context ", id, " does not exist"));
}

void CoordinatorCore::Tell(WorkerId id, const wire::Body& body) {
  Emit(action::Send{workers_.at(id).peer, body});
}

void CoordinatorCore::OnInventory(WorkerId id, const wire::Inventory& inventory) {
  Member& member = workers_.at(id);
  if (member.inventories_due == 0) {
    return LoseWorker(id, absl::InternalError("it told of more contexts than it had announced"));
  }
  --member.inventories_due;
  epoch_ = std::max(epoch_, inventory.epoch);
  const ContextId context = inventory.context;
  const auto found = recovering_.find(context);
  const bool known = found != recovering_.end();
  if (context >= incarnation_.number || contexts_.contains(context) || !InRecovery()) {
    Tell(id, wire::Release{0, inventory.epoch, context});  // it has been given up
  } else if (!known && std::ssize(contexts_) + std::ssize(recovering_) >= limits_.contexts_max) {
    return LoseWorker(id, absl::ResourceExhaustedError(absl::StrCat(
                              "contexts_max is ", limits_.contexts_max, ", and it holds more")));
  } else if (known && (found->second.world() != inventory.addresses.size() ||
                       found->second.holders.contains(inventory.rank))) {
    return LoseWorker(id, absl::InternalError(absl::StrCat("rank ", inventory.rank, " of context ",
                                                           context, " is held twice")));
  } else {
    Recovering& recovering = recovering_[context];
    recovering.holders[inventory.rank] = id;
    recovering.inventories[inventory.rank] = inventory;
    if (recovering.holders.size() == recovering.world()) Rebuild(context, recovering);
  }
  if (workers_.at(id).inventories_due == 0) ForgetHalfMade();
}

bool CoordinatorCore::IsBack(const std::string& address) const {
  return std::any_of(peers_.begin(), peers_.end(), [&](const auto& entry) {
    const Member& member = workers_.at(entry.second);
    return member.status.address == address && member.inventories_due == 0;
  });
}

// A context that was being created or released when the coordinator was lost is on some of its
// workers and not on others. Nobody was told that it exists, or somebody wanted it gone.
void CoordinatorCore::ForgetHalfMade() {
  for (auto next = recovering_.begin(); next != recovering_.end();) {
    const auto at = next++;
    const auto& [context, recovering] = *at;
    const std::vector<std::string>& addresses = recovering.inventories.begin()->second.addresses;
    if (!std::all_of(addresses.begin(), addresses.end(),
                     [this](const std::string& address) { return IsBack(address); })) {
      continue;
    }
    for (const auto& [rank, holder] : recovering.holders) {
      Tell(holder, wire::Release{0, epoch_, context});
    }
    recovering_.erase(at);
  }
}

CoordinatorCore::Layer CoordinatorCore::Reconcile(const std::vector<const LayerState*>& ranks) {
  const auto earlier = [](const LayerState* a, const LayerState* b) {
    return a->last.turn < b->last.turn;
  };
  // The rank that is behind knows the last append that all ranks stored.
  const LayerState& behind = **std::min_element(ranks.begin(), ranks.end(), earlier);
  Layer layer;
  layer.tokens = behind.tokens;
  layer.last_key = behind.last.key;
  layer.last_tokens = behind.last_tokens;
  for (const LayerState* rank : ranks) {
    layer.turn = std::max(layer.turn, rank->last.turn);
    layer.horizon = std::max(layer.horizon, rank->horizon);
    layer.tokens = std::min(layer.tokens, rank->tokens);
    if (rank->last.turn > behind.last.turn) {
      layer.tokens = std::min(layer.tokens, rank->last_tokens.begin);
    } else if (rank->last.key.client == 0) {
      layer.last_key = {};  // it was being taken back
    }
  }
  layer.horizon = std::min(layer.horizon, HorizonOf(layer.tokens));
  return layer;
}

void CoordinatorCore::Rebuild(ContextId id, Recovering& recovering) {
  const wire::Inventory& first = recovering.inventories.begin()->second;
  absl::StatusOr<Retention> retention = Retention::Of(first.spec);
  ANNULUS_CHECK(retention.ok());  // a spec that came over the wire is valid
  wire::Resume resume{++epoch_, id, {}, {}};
  ShardMap map{
      id, epoch_, first.spec, {}, std::make_shared<const Retention>(*std::move(retention))};
  Context context;
  context.created = true;
  for (const auto& [rank, holder] : recovering.holders) {
    map.workers.push_back(holder);
    resume.addresses.push_back(workers_.at(holder).status.address);
    context.kv_bytes.push_back(recovering.inventories.at(rank).kv_bytes);
  }
  for (size_t layer = 0; layer < first.layers.size(); ++layer) {
    std::vector<const LayerState*> ranks;
    for (const auto& [rank, inventory] : recovering.inventories) {
      if (layer < inventory.layers.size()) ranks.push_back(&inventory.layers[layer]);
    }
    context.layers.push_back(Reconcile(ranks));
    resume.tokens.push_back(context.layers.back().tokens);
  }
  SendToRanks(map, resume);
  context.map = std::make_shared<const ShardMap>(std::move(map));
  contexts_.emplace(id, std::move(context));
  recovering_.erase(id);
}

// Contexts of which some rank is not back are lost. They stay known as lost until released.
void CoordinatorCore::EndRecovery() {
  for (auto& [id, recovering] : std::exchange(recovering_, {})) {
    const wire::Inventory& first = recovering.inventories.begin()->second;
    ShardMap map{id, ++epoch_, first.spec, std::vector<WorkerId>(recovering.world()), nullptr};
    Context context;
    context.created = true;
    context.lost_to = absl::StrCat(recovering.world() - recovering.holders.size(), " of ",
                                   recovering.world(), " workers, which did not come back");
    context.layers.resize(first.layers.size());
    context.kv_bytes.resize(recovering.world());
    for (const auto& [rank, holder] : recovering.holders) {
      map.workers[static_cast<size_t>(rank)] = holder;
    }
    context.map = std::make_shared<const ShardMap>(std::move(map));
    contexts_.emplace(id, std::move(context));
  }
}

}  // namespace annulus
