#include "runtime/worker/task_queue.h"

#include <algorithm>
#include <type_traits>
#include <utility>

namespace annulus {
namespace {

constexpr size_t kSmallAppendBytes = size_t{1} << 20;
constexpr int64_t kFewQueries = 16;
constexpr size_t kSpareMax = 64;
constexpr uint64_t kEverything = ~uint64_t{0};

constexpr std::array<int, 4> kPlaces = {TaskQueue::kOrderMax, TaskQueue::kShortMax,
                                        TaskQueue::kBulkMax, TaskQueue::kLongMax};

uint64_t Bit(ContextId context) {
  return uint64_t{1} << (context * 0x9E3779B97F4A7C15u >> 58);
}

}  // namespace

void TaskQueue::ListClaims(const wire::Body& body, Entry* entry) {
  std::vector<Claim>& claims = entry->claims;
  std::visit(
      [&claims]<typename T>(const T& m) {
        if constexpr (std::is_same_v<T, wire::Work>) {
          for (const wire::WorkItem& item : m.items) {
            claims.push_back({item.storage_id, item.layer, item.k_tokens > 0});
          }
        } else if constexpr (std::is_same_v<T, wire::Fork>) {
          claims = {{m.parent, kAllLayers, false}, {m.storage_id, kAllLayers, true}};
        } else if constexpr (requires { m.layer; }) {
          claims.push_back({m.storage_id, m.layer, !std::is_same_v<T, wire::Read>});
        } else if constexpr (requires { m.storage_id; } && !std::is_same_v<T, wire::Inventory>) {
          claims.push_back({m.storage_id, kAllLayers, true});
        }
      },
      body);
  const auto by_context = [](const Claim& a, const Claim& b) { return a.context < b.context; };
  if (!std::is_sorted(claims.begin(), claims.end(), by_context)) {
    std::sort(claims.begin(), claims.end(), by_context);
  }
  const bool touches_none = std::holds_alternative<wire::Partials>(body);
  if (claims.empty() && !touches_none) entry->contexts = kEverything;
  for (const Claim& claim : claims) entry->contexts |= Bit(claim.context);
}

bool TaskQueue::Conflict(const Entry& a, const Entry& b) {
  if ((a.contexts & b.contexts) == 0) return false;
  if (a.claims.empty() || b.claims.empty()) return true;  // everything
  auto i = a.claims.begin();
  auto j = b.claims.begin();
  while (i != a.claims.end() && j != b.claims.end()) {
    if (i->context < j->context) {
      ++i;
    } else if (j->context < i->context) {
      ++j;
    } else {
      for (auto k = j; k != b.claims.end() && k->context == i->context; ++k) {
        const bool same = i->layer == k->layer || i->layer == kAllLayers || k->layer == kAllLayers;
        if (same && (i->writes || k->writes)) return true;
      }
      ++i;
    }
  }
  return false;
}

bool TaskQueue::Add(WorkerTask& task, bool must) {
  if (waiting() >= (must ? kTasksMax : kWorkMax)) return false;
  if (spare_.empty()) spare_.emplace_back();
  Entry& entry = spare_.front();
  entry.id = ++last_id_;
  entry.task = std::move(task);
  entry.claims.clear();
  const auto* work = std::get_if<wire::Work>(&entry.task.body);
  entry.tenant = &tenants_[work != nullptr ? work->tenant : 0];
  ++entry.tenant->tasks;
  entry.contexts = 0;
  entry.earlier = 0;
  entry.lane.reset();
  entry.begun = false;
  ListClaims(entry.task.body, &entry);
  for (const Entry& before : tasks_) entry.earlier += Conflict(before, entry) ? 1 : 0;
  tasks_.splice(tasks_.end(), spare_, spare_.begin());
  return true;
}

TaskQueue::Lane TaskQueue::LaneOf(const wire::Work& work, size_t bytes) {
  int64_t q_tokens = 0;  // the most of one item
  for (const wire::WorkItem& item : work.items) {
    if (item.channel != 0 || item.column_trip.has_value()) return Lane::kLong;
    q_tokens = std::max(q_tokens, item.q_tokens);
  }
  if (q_tokens > kFewQueries) return Lane::kLong;
  if (q_tokens > 0) return Lane::kShort;
  return bytes > kSmallAppendBytes ? Lane::kBulk : Lane::kOrder;
}

TaskQueue::Lane TaskQueue::LaneOf(Entry& entry, absl::Time now) {
  const WorkerTask& task = entry.task;
  if (entry.earlier == 0 && (task.deadline <= now || (task.cancel != nullptr && *task.cancel))) {
    return Lane::kOrder;
  }
  if (entry.lane.has_value()) return *entry.lane;
  if (const auto* work = std::get_if<wire::Work>(&task.body)) {
    entry.lane = LaneOf(*work, task.payload.size());
  } else if (std::holds_alternative<wire::Read>(task.body) ||
             std::holds_alternative<wire::Truncate>(task.body) ||
             std::holds_alternative<wire::Release>(task.body)) {
    entry.lane = Lane::kBulk;
  } else {
    entry.lane = Lane::kOrder;
  }
  return *entry.lane;
}

bool TaskQueue::MayBegin(const Tenant& tenant, Lane lane) const {
  const auto at = static_cast<size_t>(lane);
  if (running(lane) >= kPlaces[at]) return false;
  if (lane == Lane::kShort) return tenant.running[at] < kShortOfTenantMax;
  return lane != Lane::kLong || tenant.running[at] < kLongOfTenantMax;
}

TaskQueue::Place TaskQueue::FindReady(absl::Time now) {
  Place best = tasks_.end();
  std::pair<Lane, uint64_t> best_turn;
  ++looks_;
  for (Place entry = tasks_.begin(); entry != tasks_.end(); ++entry) {
    if (entry->begun) continue;
    const Lane lane = LaneOf(*entry, now);
    Tenant& tenant = *entry->tenant;
    // Only the first of a tenant's that wait.
    if (lane == Lane::kLong && std::exchange(tenant.looked, looks_) == looks_) continue;
    if (entry->earlier > 0 || !MayBegin(tenant, lane)) continue;
    if (lane == Lane::kOrder) return entry;
    const uint64_t turn = lane == Lane::kLong ? 0 : tenant.begun[static_cast<size_t>(lane)];
    if (best == tasks_.end() || std::make_pair(lane, turn) < best_turn) {
      best = entry;
      best_turn = {lane, turn};
    }
  }
  return best;
}

std::optional<TaskQueue::Begun> TaskQueue::Begin(absl::Time now) {
  const Place found = FindReady(now);
  if (found == tasks_.end()) return std::nullopt;
  const Lane lane = LaneOf(*found, now);
  found->lane = lane;
  found->begun = true;
  ++running_[static_cast<size_t>(lane)];
  Tenant& tenant = *found->tenant;
  ++tenant.running[static_cast<size_t>(lane)];
  tenant.begun[static_cast<size_t>(lane)] = ++turns_;
  found->task.urgent = lane <= Lane::kShort;
  return Begun{found->id, lane, std::move(found->task)};
}

void TaskQueue::End(uint64_t id) {
  const Place ended = std::find_if(tasks_.begin(), tasks_.end(),
                                   [id](const Entry& entry) { return entry.id == id; });
  --running_[static_cast<size_t>(*ended->lane)];
  --ended->tenant->running[static_cast<size_t>(*ended->lane)];
  for (Place later = std::next(ended); later != tasks_.end(); ++later) {
    if (!later->begun && Conflict(*ended, *later)) --later->earlier;
  }
  ended->task = {};
  if (--ended->tenant->tasks == 0 && tenants_.size() > kSpareMax) {
    std::erase_if(tenants_, [](const auto& each) { return each.second.tasks == 0; });
  }
  if (spare_.size() < kSpareMax) {
    spare_.splice(spare_.begin(), tasks_, ended);
  } else {
    tasks_.erase(ended);
  }
}

}  // namespace annulus
