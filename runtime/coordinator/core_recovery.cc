// After a restart: contexts are rebuilt from what the workers that join again say they hold.
//
// Which tokens the holders of a layer have alike: each has carried out a prefix of the same orders,
// and one whose last append has a later turn is ahead. When an append was sent, all tokens before
// its start were committed, so all holders have those alike; of what comes from its start on, those
// behind have nothing, or what was taken back since. So the layer is cut to the fewest tokens of
// any holder, and to the start of each last append that some holder does not know.
//
// Who the holders are is what the latest epoch says: one that it does not list was given up before,
// and is stale. Which epoch is the latest is certain only if no one of those that are missing may
// know a later one. A later one has a holder of every rank, and acknowledges nothing before all of
// its holders know it: so a rank of which nobody is missing proves that there is none, or that
// nothing was acknowledged since.
#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "runtime/coordinator/core.h"

namespace annulus {
namespace {

bool Lists(const wire::Inventory& inventory, int rank, const std::string& address) {
  const std::vector<wire::Copy>& copies = inventory.copies;
  return inventory.addresses[static_cast<size_t>(rank)] == address ||
         std::find(copies.begin(), copies.end(), wire::Copy{rank, address}) != copies.end();
}

}  // namespace

// Why a call cannot have a context that is not there.
absl::Status CoordinatorCore::WhyUnknown(ContextId id) const {
  const auto found = std::find_if(recovering_.begin(), recovering_.end(), [id](const auto& entry) {
    return entry.second.latest().serves == id;
  });
  if (found != recovering_.end()) {
    return absl::UnavailableError(
        absl::StrCat("context ", id, " is being recovered: ", HoldersBack(found->second).size(),
                     " of ", found->second.holders(), " workers are back; retry"));
  }
  if (id < incarnation_.number && InRecovery()) {
    return absl::UnavailableError(absl::StrCat(
        "context ", id, " is not known yet: the coordinator has started anew, ",
        std::count_if(peers_.begin(), peers_.end(),
                      [this](const auto& entry) { return workers_.at(entry.second).had_another; }),
        " workers are back and ", KnownToBeMissing(), " that they know are missing; retry"));
  }
  return absl::NotFoundError(absl::StrCat("context ", id, " does not exist"));
}

// Workers that those which are back held contexts with.
size_t CoordinatorCore::KnownToBeMissing() const {
  std::set<std::string> missing;
  for (const auto& [id, recovering] : recovering_) {
    const wire::Inventory& latest = recovering.latest();
    missing.insert(latest.addresses.begin(), latest.addresses.end());
    for (const wire::Copy& copy : latest.copies) missing.insert(copy.address);
  }
  for (const auto& [peer, id] : peers_) missing.erase(workers_.at(id).status.address);
  return missing.size();
}

void CoordinatorCore::Tell(WorkerId id, const wire::Body& body) {
  Emit(action::Send{workers_.at(id).peer, body});
}

void CoordinatorCore::OnInventory(WorkerId id, const wire::Inventory& inventory) {
  Member& member = workers_.at(id);
  if (member.inventories_due == 0) {
    return Ban(id, absl::InternalError("it told of more contexts than it had announced"));
  }
  --member.inventories_due;
  epoch_ = std::max(epoch_, inventory.epoch);
  const ContextId context = inventory.context;
  const auto found = recovering_.find(context);
  const bool known = found != recovering_.end();
  const ContextId serves = inventory.serves;
  if (TakeUp(id, inventory)) {
    // It was cut off, and is back.
  } else if (serves == 0 || serves >= incarnation_.number || contexts_.contains(serves) ||
             !InRecovery()) {
    Tell(id, wire::Release{0, inventory.epoch, context});  // it has been given up
  } else if (!known && std::ssize(contexts_) + std::ssize(recovering_) >= limits_.contexts_max) {
    return Ban(id, absl::ResourceExhaustedError(absl::StrCat(
                       "contexts_max is ", limits_.contexts_max, ", and it holds more")));
  } else if (!Lists(inventory, inventory.rank, member.status.address) ||
             (known && (found->second.latest().addresses.size() != inventory.addresses.size() ||
                        found->second.inventories.contains(id)))) {
    return Ban(id, absl::InternalError(
                       absl::StrCat("it is not rank ", inventory.rank, " of context ", context)));
  } else {
    Recovering& recovering = recovering_[context];
    recovering.inventories[id] = inventory;
    DropStale(context, recovering);
    // What it moved from may be back yet, and be right.
    if (HoldersBack(recovering).size() == recovering.holders() && !recovering.tentative()) {
      Rebuild(context, recovering);
      recovering_.erase(context);
      ForgetOtherForms(serves);
    }
  }
  if (workers_.at(id).inventories_due == 0) ForgetHalfMade();
}

bool CoordinatorCore::IsBack(const std::string& address) const {
  return std::any_of(peers_.begin(), peers_.end(), [&](const auto& entry) {
    const Member& member = workers_.at(entry.second);
    return member.had_another && member.status.address == address && member.inventories_due == 0;
  });
}

// A context that was being created or released when the coordinator was lost is on some of its
// workers and not on others. Nobody was told that it exists, or somebody wanted it gone.
void CoordinatorCore::ForgetHalfMade() {
  for (auto next = recovering_.begin(); next != recovering_.end();) {
    const auto at = next++;
    const auto& [context, recovering] = *at;
    const wire::Inventory& latest = recovering.latest();
    const bool all_back =
        std::all_of(latest.addresses.begin(), latest.addresses.end(),
                    [this](const std::string& address) { return IsBack(address); }) &&
        std::all_of(latest.copies.begin(), latest.copies.end(),
                    [this](const wire::Copy& copy) { return IsBack(copy.address); });
    if (!all_back) continue;
    for (const auto& [holder, inventory] : recovering.inventories) {
      Tell(holder, wire::Release{0, epoch_, context});
    }
    recovering_.erase(at);
  }
}

const wire::Inventory& CoordinatorCore::Recovering::latest() const {
  return std::max_element(
             inventories.begin(), inventories.end(),
             [](const auto& a, const auto& b) { return a.second.epoch < b.second.epoch; })
      ->second;
}

bool CoordinatorCore::Recovering::tentative() const {
  return std::all_of(inventories.begin(), inventories.end(),
                     [](const auto& entry) { return entry.second.tentative; });
}

void CoordinatorCore::DropStale(ContextId id, Recovering& recovering) {
  const wire::Inventory latest = recovering.latest();
  std::erase_if(recovering.inventories, [&](const auto& entry) {
    const auto& [worker, inventory] = entry;
    if (Lists(latest, inventory.rank, workers_.at(worker).status.address)) return false;
    Tell(worker, wire::Release{0, inventory.epoch, id});
    return true;
  });
}

// Those that answered queries before come first.
std::vector<Holder> CoordinatorCore::HoldersBack(const Recovering& recovering) const {
  const std::vector<std::string>& answered = recovering.latest().addresses;
  std::vector<Holder> back;
  for (const auto& [worker, inventory] : recovering.inventories) {
    back.push_back({worker, inventory.rank});
  }
  std::stable_partition(back.begin(), back.end(), [&](const Holder& holder) {
    return answered[static_cast<size_t>(holder.rank)] == workers_.at(holder.worker).status.address;
  });
  return back;
}

bool CoordinatorCore::IsSafe(const Recovering& recovering) {
  const wire::Inventory& latest = recovering.latest();
  std::vector<int> missing(latest.addresses.size(), 1);
  std::vector<int> back(latest.addresses.size());
  for (const wire::Copy& copy : latest.copies) ++missing[static_cast<size_t>(copy.rank)];
  for (const auto& [worker, inventory] : recovering.inventories) {
    --missing[static_cast<size_t>(inventory.rank)];
    ++back[static_cast<size_t>(inventory.rank)];
  }
  return std::find(missing.begin(), missing.end(), 0) != missing.end() &&
         std::find(back.begin(), back.end(), 0) == back.end();
}

CoordinatorCore::Layer CoordinatorCore::Reconcile(const std::vector<const LayerState*>& holders) {
  const auto earlier = [](const LayerState* a, const LayerState* b) {
    return a->last.turn < b->last.turn;
  };
  // The one that is behind knows the last append that all have stored.
  const LayerState& behind = **std::min_element(holders.begin(), holders.end(), earlier);
  Layer layer;
  layer.tokens = behind.tokens;
  layer.last_key = behind.last.key;
  layer.last_tokens = behind.last_tokens;
  for (const LayerState* holder : holders) {
    layer.turn = std::max(layer.turn, holder->last.turn);
    layer.horizon = std::max(layer.horizon, holder->horizon);
    layer.tokens = std::min(layer.tokens, holder->tokens);
    if (holder->last.turn > behind.last.turn) {
      layer.tokens = std::min(layer.tokens, holder->last_tokens.begin);
    } else if (holder->last.key.client == 0) {
      layer.last_key = {};  // it was being taken back
    }
  }
  layer.horizon = std::min(layer.horizon, HorizonOf(layer.tokens));
  return layer;
}

// Of a context that is back: what it was being moved from, or to. Whoever is complete is right.
void CoordinatorCore::ForgetOtherForms(ContextId id) {
  for (auto next = recovering_.begin(); next != recovering_.end();) {
    const auto other = next++;
    if (other->second.latest().serves != id) continue;
    for (const auto& [holder, inventory] : other->second.inventories) {
      Tell(holder, wire::Release{0, epoch_, other->first});
    }
    recovering_.erase(other);
  }
}

void CoordinatorCore::Rebuild(ContextId id, const Recovering& recovering) {
  const wire::Inventory& latest = recovering.latest();
  absl::StatusOr<Retention> retention = Retention::Of(latest.spec);
  ANNULUS_CHECK(retention.ok());  // a spec that came over the wire is valid
  ShardMap map;
  map.context = latest.serves;
  map.storage = id;
  map.epoch = ++epoch_;
  map.spec = latest.spec;
  map.world = static_cast<int>(latest.addresses.size());
  map.holders = HoldersBack(recovering);
  map.retention = std::make_shared<const Retention>(*std::move(retention));
  ANNULUS_CHECK(Arrange(map));
  Context context;
  context.created = true;
  for (const auto& [worker, inventory] : recovering.inventories) {
    context.kv_bytes[worker] = inventory.kv_bytes;
  }
  for (size_t layer = 0; layer < latest.layers.size(); ++layer) {
    std::vector<const LayerState*> holders;
    for (const auto& [worker, inventory] : recovering.inventories) {
      if (layer < inventory.layers.size()) holders.push_back(&inventory.layers[layer]);
    }
    context.layers.push_back(Reconcile(holders));
  }
  context.map = std::make_shared<const ShardMap>(std::move(map));
  SendToHolders(*context.map, ResumeOf(*context.map, context.layers));
  contexts_.emplace(latest.serves, std::move(context));
}

// Contexts of which some rank is not back are lost, unless a copy of it is. They stay known as lost
// until released.
void CoordinatorCore::EndRecovery() {
  for (auto next = recovering_.begin(); next != recovering_.end();) {
    const auto at = next++;
    const ContextId serves = at->second.latest().serves;
    const bool is_latest =
        std::none_of(recovering_.begin(), recovering_.end(), [&](const auto& other) {
          return other.second.latest().serves == serves &&
                 other.second.latest().epoch > at->second.latest().epoch;
        });
    if (!is_latest || !IsSafe(at->second)) continue;
    Rebuild(at->first, at->second);
    recovering_.erase(at);
    ForgetOtherForms(serves);
    next = recovering_.begin();
  }
  for (const auto& [id, recovering] : std::exchange(recovering_, {})) {
    const wire::Inventory& latest = recovering.latest();
    ShardMap map;
    map.context = latest.serves;
    map.storage = id;
    map.epoch = ++epoch_;
    map.spec = latest.spec;
    map.world = static_cast<int>(latest.addresses.size());
    map.holders = HoldersBack(recovering);
    Context context;
    context.created = true;
    context.lost_to = absl::StrCat(recovering.holders() - map.holders.size(), " of ",
                                   recovering.holders(), " workers, which did not come back");
    context.layers.resize(latest.layers.size());
    context.map = std::make_shared<const ShardMap>(std::move(map));
    contexts_.emplace(latest.serves, std::move(context));
  }
}

}  // namespace annulus
