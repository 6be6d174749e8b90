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
#include "runtime/coordinator/core.h"

namespace annulus {
namespace {

bool EachRankIsHeld(const ShardMap& map) {
  std::vector<bool> held(static_cast<size_t>(map.world));
  for (const Holder& holder : map.holders) held[static_cast<size_t>(holder.rank)] = true;
  return std::find(held.begin(), held.end(), false) == held.end();
}

}  // namespace

// What is in flight on it ends, since the map's epoch is another one.
void CoordinatorCore::LoseHolder(Context& context, WorkerId id) {
  ShardMap map = *context.map;
  const auto held = std::find_if(map.holders.begin(), map.holders.end(),
                                 [id](const Holder& holder) { return holder.worker == id; });
  if (held == map.holders.end()) return;
  const Member& member = workers_.at(id);
  context.absent.push_back({member.status.address, member.label, held->rank});
  map.epoch = epoch_;
  map.holders.erase(held);
  context.kv_bytes.erase(id);
  context.map = std::make_shared<const ShardMap>(std::move(map));
  if (!context.lost_to.empty()) return;
  if (!context.created) {  // nobody was told yet that it exists: the call fails
    context.lost_to = member.label;
    return;
  }
  absl::Duration wait;
  if (now_ < doubt_until_) {
    wait = EachRankIsHeld(*context.map) ? heartbeat_timeout_ : incarnation_.recovery_wait;
  }
  context.absent_until = std::max(context.absent_until, now_ + wait);
  if (now_ >= context.absent_until) return EndAbsence(context);
  absent_due_ = std::min(absent_due_, context.absent_until);
}

// Nobody is waited for any longer.
void CoordinatorCore::EndAbsence(Context& context) {
  if (EachRankIsHeld(*context.map)) return GoOn(context);
  context.lost_to = context.absent.front().label;
}

void CoordinatorCore::EndAbsences() {
  ++epoch_;
  absent_due_ = absl::InfiniteFuture();
  for (auto& [id, context] : contexts_) {
    if (context.absent.empty() || !context.lost_to.empty()) continue;
    if (now_ >= context.absent_until) {
      EndAbsence(context);
    } else {
      absent_due_ = std::min(absent_due_, context.absent_until);
    }
  }
}

// With those that are there, at the current epoch.
void CoordinatorCore::GoOn(Context& context) {
  context.absent.clear();
  context.lost_to.clear();
  ShardMap map = *context.map;
  map.epoch = epoch_;
  Arrange(map);
  context.map = std::make_shared<const ShardMap>(std::move(map));
  SendToHolders(*context.map, ResumeOf(*context.map, context.layers));
}

// Whether the worker is a holder of the context again, which it was when it was cut off.
bool CoordinatorCore::TakeUp(WorkerId id, const wire::Inventory& inventory) {
  const auto found = contexts_.find(inventory.serves);
  if (found == contexts_.end() || found->second.map->storage != inventory.context) return false;
  Context& context = found->second;
  const std::string& address = workers_.at(id).status.address;
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
  map.epoch = ++epoch_;
  map.holders.push_back({id, inventory.rank});
  context.map = std::make_shared<const ShardMap>(std::move(map));
  const bool waits = context.lost_to.empty();
  if (context.absent.empty() || (!waits && EachRankIsHeld(*context.map))) GoOn(context);
  return true;
}

absl::Status CoordinatorCore::CheckAllThere(const Context& context) const {
  if (context.absent.empty()) return absl::OkStatus();
  const size_t missing = context.absent.size();
  return absl::UnavailableError(
      absl::StrCat("context ", context.map->context, " waits for ", missing, " of its ",
                   missing + context.map->holders.size(), " workers to join again; retry"));
}

// A worker that joins has no other link any more, whatever its last one seems to be. False for one
// that may not.
bool CoordinatorCore::MakeWayFor(const wire::Hello& hello) {
  for (auto next = workers_.begin(); next != workers_.end();) {
    const auto [id, member] = *next++;
    if (hello.address.empty() || member.status.address != hello.address) continue;
    if (member.banned) return false;
    if (IsUp(member)) {
      doubt_until_ = std::max(doubt_until_, now_ + heartbeat_timeout_);  // it is about to be back
      LoseWorker(id, absl::UnavailableError("it has joined again"));
    }
    workers_.erase(id);
  }
  return true;
}

}  // namespace annulus
