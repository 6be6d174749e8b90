#include "runtime/coordinator/core/recovery.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "runtime/context/retention.h"
#include "runtime/coordinator/core/placement.h"

namespace annulus {
namespace {

bool Lists(const wire::Inventory& inventory, int rank, const std::string& address) {
  const std::vector<wire::Copy>& copies = inventory.copies;
  return inventory.addresses[static_cast<size_t>(rank)] == address ||
         std::find(copies.begin(), copies.end(), wire::Copy{rank, address}) != copies.end();
}

// What of a layer all of its holders have alike.
Layer Reconcile(const std::vector<const LayerState*>& holders) {
  const auto earlier = [](const LayerState* a, const LayerState* b) {
    return a->last.append_number < b->last.append_number;
  };
  // The one that is behind knows the last append that all have stored.
  const LayerState& behind = **std::min_element(holders.begin(), holders.end(), earlier);
  Layer layer;
  layer.tokens = behind.tokens;
  layer.last_key = behind.last.key;
  layer.last_tokens = behind.last_tokens;
  for (const LayerState* holder : holders) {
    layer.append_number = std::max(layer.append_number, holder->last.append_number);
    layer.horizon = std::max(layer.horizon, holder->horizon);
    layer.tokens = std::min(layer.tokens, holder->tokens);
    if (holder->last.append_number > behind.last.append_number) {
      layer.tokens = std::min(layer.tokens, holder->last_tokens.begin);
    } else if (!holder->last.key.given()) {
      layer.last_key = {};  // it was being taken back
    }
  }
  layer.horizon = std::min(layer.horizon, HorizonOf(layer.tokens));
  return layer;
}

}  // namespace

void Recovery::NoteTime() {
  if (until_ == absl::InfiniteFuture()) until_ = out_.now() + incarnation_.recovery_wait;
}

int64_t Recovery::Pending(const Caller& caller) const {
  return std::count_if(found_.begin(), found_.end(), [&](const auto& entry) {
    return MayKnow(caller, entry.second.latest().spec.owner);
  });
}

bool Recovery::may_find_more() const {
  if (!waits()) return false;
  const bool some_tell = std::any_of(
      members_.links().begin(), members_.links().end(),
      [this](const auto& entry) { return members_.at(entry.second).inventories_due > 0; });
  return some_tell || KnownToBeMissing() > 0;
}

absl::StatusOr<Context*> Recovery::Find(const Caller& caller, ContextId id) const {
  Context* const context = contexts_.Find(id);
  if (context != nullptr && MayKnow(caller, context->owner())) return context;
  return WhyUnknown(caller, id);
}

// Of a context that the caller may not know this says what it says of one that never was.
absl::Status Recovery::WhyUnknown(const Caller& caller, ContextId id) const {
  ANNULUS_RETURN_IF_ERROR(contexts_.WhyEnded(id, caller));
  const auto found = std::find_if(found_.begin(), found_.end(), [&](const auto& entry) {
    const wire::Inventory& latest = entry.second.latest();
    return latest.context == id && MayKnow(caller, latest.spec.owner);
  });
  if (found != found_.end()) {
    return absl::UnavailableError(
        absl::StrCat("context ", id, " is being recovered: ", HoldersBack(found->second).size(),
                     " of ", found->second.holders(), " workers are back; retry"));
  }
  if (id < incarnation_.number && waits()) {
    return absl::UnavailableError(absl::StrCat(
        "context ", id, " is not known yet: the coordinator has started anew, ",
        std::count_if(members_.links().begin(), members_.links().end(),
                      [this](const auto& entry) { return members_.at(entry.second).had_another; }),
        " workers are back and ", KnownToBeMissing(), " that they know are missing; retry"));
  }
  return absl::NotFoundError(absl::StrCat("context ", id, " does not exist"));
}

// Workers that those which are back held contexts with.
size_t Recovery::KnownToBeMissing() const {
  std::set<std::string> missing;
  for (const auto& [id, found] : found_) {
    const wire::Inventory& latest = found.latest();
    missing.insert(latest.addresses.begin(), latest.addresses.end());
    for (const wire::Copy& copy : latest.copies) missing.insert(copy.address);
  }
  for (const auto& [peer, id] : members_.links()) missing.erase(members_.at(id).status.address);
  return missing.size();
}

absl::Status Recovery::CheckInventory(const Member& member,
                                      const wire::Inventory& inventory) const {
  const auto known = found_.find(inventory.storage_id);
  if (known == found_.end() &&
      std::ssize(contexts_.all()) + std::ssize(found_) >= limits_.contexts_max) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "contexts_max: ", limits_.contexts_max, "; as many in use, the one it holds needs 1 more"));
  }
  const bool is_other = known != found_.end() &&
                        (known->second.latest().addresses.size() != inventory.addresses.size() ||
                         known->second.inventories.contains(member.status.id));
  if (Lists(inventory, inventory.rank, member.status.address) && !is_other) {
    return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrCat("it is not rank ", inventory.rank, " of context ", inventory.storage_id));
}

absl::Status Recovery::OnInventory(WorkerId id, const wire::Inventory& inventory) {
  if (!members_.TakeInventory(id)) {
    return absl::InternalError("it told of more contexts than it had announced");
  }
  members_.SeeEpoch(inventory.epoch);
  const ContextId storage_id = inventory.storage_id;
  const ContextId context = inventory.context;
  if (contexts_.TakeUp(id, inventory)) {
    // It was cut off, and is back.
  } else if (context == 0 || context >= incarnation_.number || contexts_.Has(context) || !waits()) {
    members_.Tell(id, wire::Release{0, inventory.epoch, storage_id});  // it has been given up
  } else {
    ANNULUS_RETURN_IF_ERROR(CheckInventory(members_.at(id), inventory));
    Found& found = found_[storage_id];
    found.inventories[id] = inventory;
    DropStale(storage_id, found);
    // What it moved from may be back yet, and be right.
    if (HoldersBack(found).size() == found.holders() && !found.activating()) {
      Rebuild(storage_id, found);
      found_.erase(storage_id);
      ForgetOtherForms(context);
    }
  }
  if (members_.at(id).inventories_due == 0) ForgetHalfMade();
  return absl::OkStatus();
}

void Recovery::LoseWorker(WorkerId id) {
  for (auto& [context, found] : found_) found.inventories.erase(id);
  std::erase_if(found_, [](const auto& entry) { return entry.second.inventories.empty(); });
}

bool Recovery::IsBack(const std::string& address) const {
  return std::any_of(members_.links().begin(), members_.links().end(), [&](const auto& entry) {
    const Member& member = members_.at(entry.second);
    return member.had_another && member.status.address == address && member.inventories_due == 0;
  });
}

// A context that was being created or released when the coordinator was lost is on some of its
// workers and not on others. Nobody was told that it exists, or somebody wanted it gone.
void Recovery::ForgetHalfMade() {
  for (auto next = found_.begin(); next != found_.end();) {
    const auto at = next++;
    const auto& [context, found] = *at;
    const wire::Inventory& latest = found.latest();
    const bool all_back =
        std::all_of(latest.addresses.begin(), latest.addresses.end(),
                    [this](const std::string& address) { return IsBack(address); }) &&
        std::all_of(latest.copies.begin(), latest.copies.end(),
                    [this](const wire::Copy& copy) { return IsBack(copy.address); });
    if (!all_back) continue;
    for (const auto& [holder, inventory] : found.inventories) {
      members_.Tell(holder, wire::Release{0, members_.epoch(), context});
    }
    found_.erase(at);
  }
}

const wire::Inventory& Recovery::Found::latest() const {
  return std::max_element(
             inventories.begin(), inventories.end(),
             [](const auto& a, const auto& b) { return a.second.epoch < b.second.epoch; })
      ->second;
}

bool Recovery::Found::activating() const {
  return std::all_of(inventories.begin(), inventories.end(),
                     [](const auto& entry) { return entry.second.activating; });
}

void Recovery::DropStale(ContextId id, Found& found) {
  const wire::Inventory latest = found.latest();
  std::erase_if(found.inventories, [&](const auto& entry) {
    const auto& [worker, inventory] = entry;
    if (Lists(latest, inventory.rank, members_.at(worker).status.address)) return false;
    members_.Tell(worker, wire::Release{0, inventory.epoch, id});
    return true;
  });
}

// Those that answered queries before come first.
std::vector<Holder> Recovery::HoldersBack(const Found& found) const {
  const std::vector<std::string>& answered = found.latest().addresses;
  std::vector<Holder> back;
  for (const auto& [worker, inventory] : found.inventories) {
    back.push_back({worker, inventory.rank});
  }
  std::stable_partition(back.begin(), back.end(), [&](const Holder& holder) {
    return answered[static_cast<size_t>(holder.rank)] == members_.at(holder.worker).status.address;
  });
  return back;
}

bool Recovery::Found::is_safe() const {
  std::vector<int> missing(latest().addresses.size(), 1);
  std::vector<int> back(latest().addresses.size());
  for (const wire::Copy& copy : latest().copies) ++missing[static_cast<size_t>(copy.rank)];
  for (const auto& [worker, inventory] : inventories) {
    --missing[static_cast<size_t>(inventory.rank)];
    ++back[static_cast<size_t>(inventory.rank)];
  }
  return std::find(missing.begin(), missing.end(), 0) != missing.end() &&
         std::find(back.begin(), back.end(), 0) == back.end();
}

// Of a context that is back: what it was being moved from, or to. Whoever is complete is right.
void Recovery::ForgetOtherForms(ContextId id) {
  for (auto next = found_.begin(); next != found_.end();) {
    const auto other = next++;
    if (other->second.latest().context != id) continue;
    for (const auto& [holder, inventory] : other->second.inventories) {
      members_.Tell(holder, wire::Release{0, members_.epoch(), other->first});
    }
    found_.erase(other);
  }
}

ShardMap Recovery::MapOf(ContextId id, const Found& found) {
  const wire::Inventory& latest = found.latest();
  ShardMap map;
  map.context = latest.context;
  map.storage_id = id;
  map.epoch = members_.NextEpoch();
  map.spec = latest.spec;
  map.world = static_cast<int>(latest.addresses.size());
  absl::StatusOr<Retention> retention = Retention::Of(map.spec);
  ANNULUS_CHECK(retention.ok());  // a spec that came over the wire is valid
  map.retention = std::make_shared<const Retention>(*std::move(retention));
  map.heads = HeadMapOf(map.spec, map.world, *map.retention);
  map.tracks = TrackSpecs(map.spec);
  map.holders = HoldersBack(found);
  return map;
}

void Recovery::Rebuild(ContextId id, const Found& found) {
  const wire::Inventory& latest = found.latest();
  ShardMap map = MapOf(id, found);
  ANNULUS_CHECK(Arrange(map));
  Context context;
  context.created = true;
  for (const auto& [worker, inventory] : found.inventories) {
    context.kv_bytes[worker] = inventory.kv_bytes;
  }
  for (size_t layer = 0; layer < latest.layers.size(); ++layer) {
    std::vector<const LayerState*> holders;
    for (const auto& [worker, inventory] : found.inventories) {
      if (layer < inventory.layers.size()) holders.push_back(&inventory.layers[layer]);
    }
    context.layers.push_back(Reconcile(holders));
  }
  context.map = std::make_shared<const ShardMap>(std::move(map));
  members_.TellHolders(*context.map, context.Resume(members_, *context.map));
  contexts_.Add(std::move(context));
}

void Recovery::EndIfDue() {
  if (waits()) return;
  for (auto next = found_.begin(); next != found_.end();) {
    const auto at = next++;
    const ContextId context_id = at->second.latest().context;
    const bool is_latest = std::none_of(found_.begin(), found_.end(), [&](const auto& other) {
      return other.second.latest().context == context_id &&
             other.second.latest().epoch > at->second.latest().epoch;
    });
    if (!is_latest || !at->second.is_safe()) continue;
    Rebuild(at->first, at->second);
    found_.erase(at);
    ForgetOtherForms(context_id);
    next = found_.begin();
  }
  for (const auto& [id, found] : std::exchange(found_, {})) {
    ShardMap map = MapOf(id, found);
    Context context;
    context.created = true;
    context.given_up = true;
    context.lost_to = absl::StrCat(found.holders() - map.holders.size(), " of ", found.holders(),
                                   " workers, which did not come back");
    context.layers.resize(found.latest().layers.size());
    context.map = std::make_shared<const ShardMap>(std::move(map));
    out_.Emit(action::ContextLost{context.map->context, context.lost_to});
    contexts_.Add(std::move(context));
  }
}

}  // namespace annulus
