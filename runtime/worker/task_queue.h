// TaskQueue: a worker's tasks that have come and not ended, and which of them may begin now.
//
// Order: of two tasks on the same layer of the same context the later one begins once the earlier
// one has ended, unless both only read it. A task on a whole context touches all of its layers, an
// inventory touches everything. All other tasks may pass each other.
//
// Lanes: a task waits for tasks of its own lane only.
//   order  small appends, opens, forks and the like; what other workers have to be merged; and
//          whatever was cancelled or is late, since it ends at once.
//   short  work whose items have few queries each: decode steps above all.
//   bulk   what moves or clears much memory: large appends, reads, truncations, releases.
//   long   other work. It begins in the order in which it came, whatever the number of places: so
//          all workers begin the same, and none waits in an exchange for a rank that waits for its
//          own place behind another exchange.
// Tenants: in the lanes short and bulk it is the turn of the tenant whose turn was longest ago, and
// no tenant has more than one short task running. Of long tasks a tenant has kLongOfTenantMax
// running at most, and they begin in their order but for those whose tenant has as many: the first
// of all that wait can always begin, on every worker, once others end.
// A short task waits for no other worker; one that may is long. Where steps are merged among
// workers no task waits: what comes from others is a task of its own, which touches no context.
//
// Thread-compatible, without a clock or a thread: worker threads and simulations drive it.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <numeric>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "runtime/worker/task.h"

namespace annulus {

class TaskQueue {
 public:
  enum class Lane { kOrder, kShort, kBulk, kLong };
  // How many tasks of each lane run at once.
  static constexpr int kOrderMax = 1;
  static constexpr int kShortMax = 3;
  static constexpr int kBulkMax = 2;
  static constexpr int kLongMax = 12;
  static constexpr int kShortOfTenantMax = 1;
  static constexpr int kLongOfTenantMax = 8;
  static constexpr int kRunningMax = kOrderMax + kShortMax + kBulkMax + kLongMax;
  // Tasks that wait. The second half is for those that must be taken, so that a flood of work
  // cannot keep them out.
  static constexpr size_t kTasksMax = 4096;
  static constexpr size_t kWorkMax = kTasksMax / 2;

  // Takes a task, or returns false where there is no room for it.
  bool Add(WorkerTask& task, bool must);

  struct Begun {
    uint64_t id = 0;
    Lane lane = Lane::kShort;
    WorkerTask task;
  };
  // The next task that may begin, those of the first lanes first. It runs until End.
  std::optional<Begun> Begin(absl::Time now);
  void End(uint64_t id);

  // Whether Begin would give one.
  bool ready(absl::Time now) { return FindReady(now) != tasks_.end(); }
  int running() const { return std::accumulate(running_.begin(), running_.end(), 0); }
  int running(Lane lane) const { return running_[static_cast<size_t>(lane)]; }
  size_t waiting() const { return tasks_.size() - static_cast<size_t>(running()); }

 private:
  // Whoever tasks are for, at least while there are any.
  struct Tenant {
    int tasks = 0;
    std::array<int, 4> running = {};     // by lane
    std::array<uint64_t, 4> begun = {};  // the turn of the last task that did, by lane
    uint64_t looked = 0;                 // the last look that met a long task that waits
  };
  struct Claim {
    ContextId context = 0;
    int layer = 0;  // or kAllLayers
    bool writes = false;
  };
  struct Entry {
    uint64_t id = 0;
    WorkerTask task;            // until it begins
    std::vector<Claim> claims;  // by context
    Tenant* tenant = nullptr;
    uint64_t contexts = 0;     // a bit for each context, as Bit gives it; all for everything
    int earlier = 0;           // conflicting tasks before it that have not ended
    std::optional<Lane> lane;  // once it is known
    bool begun = false;
  };
  using Place = std::list<Entry>::iterator;

  static constexpr int kAllLayers = -1;
  static bool Conflict(const Entry& a, const Entry& b);
  static void ListClaims(const wire::Body& body, Entry* entry);
  static Lane LaneOf(const wire::Work& work, size_t bytes);
  Lane LaneOf(Entry& entry, absl::Time now);
  bool MayBegin(const Tenant& tenant, Lane lane) const;
  Place FindReady(absl::Time now);

  std::unordered_map<uint64_t, Tenant> tenants_;  // by the number in Work; 0: nobody
  uint64_t turns_ = 0;
  uint64_t looks_ = 0;
  std::list<Entry> tasks_;  // in the order in which they came
  std::list<Entry> spare_;  // kept, so that a warm queue allocates nothing
  uint64_t last_id_ = 0;
  std::array<int, 4> running_ = {};
};

}  // namespace annulus
