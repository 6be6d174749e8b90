// Holders that are cut off, and come back.
//
// A worker that hears nothing of its coordinator cuts itself off, keeps what it holds and joins
// again; so does one that the coordinator took for lost. What it holds is current if its context
// has not gone on without it: nothing was committed since. So a context that lacks a rank keeps a
// list of the holders that were there at the end (Context::absent), and goes on at a new epoch as
// soon as they are back. What it goes on with is what the coordinator knows to be committed: every
// holder has that, since an append is committed only once all have stored it, and each has carried
// out the first of the orders that it was sent. What else it stored is cut off by the Resume.
//
// A context that has copies goes on with them at once; whoever was cut off is then stale, and told
// to release it. After a stand-still of the coordinator itself all workers may have cut themselves
// off, and the first to be missed is no staler than the last: contexts wait for them.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/coordinator/core/contexts.h"
#include "runtime/coordinator/core/placement.h"

namespace annulus {
namespace {

bool EachRankIsHeld(const ShardMap& map) {
  std::vector<bool> held(static_cast<size_t>(map.world));
  for (const Holder& holder : map.holders) held[static_cast<size_t>(holder.rank)] = true;
  return std::find(held.begin(), held.end(), false) == held.end();
}

}  // namespace

void Contexts::LoseHolder(WorkerId id) {
  for (auto& [context_id, context] : contexts_) LoseHolder(context, id);
}

int64_t Contexts::CountWaiting() const {
  if (absent_due_ == absl::InfiniteFuture()) return 0;
  return std::count_if(contexts_.begin(), contexts_.end(), [](const auto& entry) {
    return entry.second.state() == ContextState::kRecovering;
  });
}

// What is in flight on it ends, since the map's epoch is another one.
void Contexts::LoseHolder(Context& context, WorkerId id) {
  ShardMap map = *context.map;
  const auto held = std::find_if(map.holders.begin(), map.holders.end(),
                                 [id](const Holder& holder) { return holder.worker == id; });
  if (held == map.holders.end()) return;
  const Member& member = members_.at(id);
  context.absent.push_back({member.status.address, member.label, held->rank});
  map.holders.erase(held);
  context.kv_bytes.erase(id);
  SetMap(context, std::move(map));
  if (!context.lost_to.empty()) return;
  if (!context.created) {  // nobody was told yet that it exists: the call fails
    context.lost_to = member.label;
    return;
  }
  absl::Duration wait;
  if (members_.in_doubt()) {
    wait = EachRankIsHeld(*context.map) ? heartbeat_timeout_ : recovery_wait_;
  }
  context.absent_until = std::max(context.absent_until, out_.now() + wait);
  if (out_.now() >= context.absent_until) return EndAbsence(context);
  absent_due_ = std::min(absent_due_, context.absent_until);
}

// Nobody is waited for any longer.
void Contexts::EndAbsence(Context& context) {
  if (EachRankIsHeld(*context.map)) return GoOn(context);
  context.lost_to = context.absent.front().label;
  out_.Emit(action::ContextLost{context.map->context, context.lost_to});
}

void Contexts::EndAbsences() {
  if (out_.now() < absent_due_) return;
  members_.NextEpoch();
  absent_due_ = absl::InfiniteFuture();
  for (auto& [id, context] : contexts_) {
    if (context.absent.empty() || !context.lost_to.empty()) continue;
    if (out_.now() >= context.absent_until) {
      EndAbsence(context);
    } else {
      absent_due_ = std::min(absent_due_, context.absent_until);
    }
  }
}

// With those that are there, at the current epoch.
void Contexts::GoOn(Context& context) {
  context.absent.clear();
  context.lost_to.clear();
  ShardMap map = *context.map;
  Arrange(map);
  SetMap(context, std::move(map));
  members_.TellHolders(*context.map, context.Resume(members_, *context.map));
}

bool Contexts::TakeUp(WorkerId id, const wire::Inventory& inventory) {
  const auto found = contexts_.find(inventory.context);
  if (found == contexts_.end() || found->second.map->storage_id != inventory.storage_id)
    return false;
  Context& context = found->second;
  if (context.given_up) return false;
  const std::string& address = members_.at(id).status.address;
  const auto absent =
      std::find_if(context.absent.begin(), context.absent.end(),
                   [&](const auto& a) { return a.address == address && a.rank == inventory.rank; });
  const bool complete = std::equal(
      context.layers.begin(), context.layers.end(), inventory.layers.begin(),
      inventory.layers.end(),
      [](const Layer& here, const LayerState& there) { return here.tokens <= there.tokens; });
  if (absent == context.absent.end() || !complete) return false;
  context.absent.erase(absent);
  context.kv_bytes[id] = inventory.kv_bytes;
  ShardMap map = *context.map;
  map.holders.push_back({id, inventory.rank});
  members_.NextEpoch();
  SetMap(context, std::move(map));
  const bool waits = context.lost_to.empty();
  if (context.absent.empty() || (!waits && EachRankIsHeld(*context.map))) GoOn(context);
  return true;
}

}  // namespace annulus
