// WorkRunner: executes a Work on one worker: stores what each item appends, then has the engine
// attend the queries of all items. An item that fails leaves the others alone. Thread-safe as far
// as TaskQueue lets tasks run at once.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/backend.h"
#include "base/clock.h"
#include "base/lru_cache.h"
#include "base/stop.h"
#include "base/trace_context.h"
#include "runtime/context/bound_patterns.h"
#include "runtime/context/pattern_cache.h"
#include "runtime/engine/batch.h"
#include "runtime/engine/selection.h"
#include "runtime/store/kv_store.h"
#include "runtime/worker/list_store.h"
#include "runtime/worker/task.h"
#include "sharding/plan.h"
#include "sharding/planner.h"

namespace annulus {

class WorkRunner {
 public:
  // What it asks of its owner.
  struct Owner {
    // Whether a context is held here at an epoch.
    std::function<absl::Status(ContextId, uint64_t epoch)> check;
    // This rank's end of an exchange among the holders of a context.
    std::function<absl::StatusOr<std::unique_ptr<Exchange>>(ContextId, uint64_t channel, int rank)>
        open_exchange = {};
    // The address of a context's rank; empty if the context is not held here.
    std::function<std::string(ContextId, int rank)> address_of = {};
    SpanSink spans = {};  // of Works whose calls are recorded
  };

  // All must outlive this.
  WorkRunner(KvStore& store, Backend& backend, const Clock& clock, Owner owner)
      : store_(store), backend_(backend), clock_(clock), owner_(std::move(owner)) {}

  // A task that is a Work. Its WorkDone, unless that waits for other ranks' partials.
  TaskOutcome Run(const WorkerTask& task);

  // Payload that exchanges have moved.
  uint64_t exchange_bytes_sent() const {
    return exchange_bytes_sent_.load(std::memory_order_relaxed);
  }
  uint64_t exchange_bytes_received() const {
    return exchange_bytes_received_.load(std::memory_order_relaxed);
  }

  void Forget(ContextId context) {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_.erase(context);
  }
  // Another coordinator numbers its lists anew.
  void ForgetLists() { ForgetLists(lists_.ForgetAll()); }

 private:
  // The blocks that this rank holds of a context's first `blocks`: the same for 64 steps and all
  // layers.
  struct Held {
    int64_t blocks = 0;
    std::shared_ptr<const BlockSet> keys;
  };
  // What an item's part of the batch borrows.
  struct Kept {
    std::shared_ptr<const Pattern> pattern;
    std::shared_ptr<const Plan> plan;
    std::shared_ptr<const BlockSet> keys;
    std::optional<ProblemSize> size;  // of what was chosen, where that is asked
  };
  // Of a plan: context, epoch, pattern, kind, stages, and where queries and keys are.
  using Key = std::array<int64_t, 10>;

  // CANCELLED or DEADLINE_EXCEEDED for a task that nobody waits for any more.
  absl::Status CheckInTime(const WorkerTask& task) const;
  // Stores what the items append, but of those that have failed.
  void Store(const WorkerTask& task, absl::Span<BatchItem> batch);
  absl::Status SetUp(const WorkerTask& task, const wire::WorkItem& item, Buffer queries,
                     BatchItem* to, Kept* kept);
  void ForgetLists(const std::vector<std::shared_ptr<const KeyListData>>& gone);
  // What the item's lists, and others that were made here, make of its pattern, which may live as
  // long as the item.
  absl::Status BindLists(const wire::WorkItem& item, std::vector<NumberedList> made,
                         const ContextSpec& spec, Kept* kept);
  absl::Status SetUpAlone(const wire::WorkItem& item, const KvStore::Shard& shard,
                          const Buffer& queries, BatchItem* to, Kept* kept);
  absl::Status SetUpPlanned(const WorkerTask& task, const wire::WorkItem& item,
                            const KvStore::Shard& shard, const KvTable& table, Buffer queries,
                            BatchItem* to, Kept* kept);
  // DATA_LOSS if the item brought other than so many elements.
  static absl::Status CheckQueryBytes(const wire::WorkItem& item, int64_t elements, DType dtype);
  // Scores what the item's words choose from among this rank's pages.
  absl::Status Select(const WorkerTask& task, const wire::WorkItem& item,
                      const KvStore::Shard& shard, const Pattern& pattern, const Buffer& queries,
                      BatchItem* to);
  // The same of a word by an index, from among its rows of a track.
  absl::StatusOr<Buffer> SelectByIndex(const wire::WorkItem& item, const KvStore::Shard& shard,
                                       const std::shared_ptr<const Selector>& word,
                                       const Buffer& queries, const Loops& loops);
  // Chooses for the item's words and sets its parts up: the backend chooses as it attends if it
  // can, else the words' lists are made first.
  absl::Status SetUpChoosing(const WorkerTask& task, const wire::WorkItem& item,
                             const KvStore::Shard& shard, const KvTable& table,
                             const Buffer& queries, BatchItem* to, Kept* kept);
  absl::StatusOr<KeyListData> ChooseAlone(const WorkerTask& task, const wire::WorkItem& item,
                                          const KvStore::Shard& shard, const Selector& word,
                                          const Buffer& queries);
  static void Complete(const WorkerTask& task, const wire::WorkItem& item, const KvTable& table,
                       BatchItem* to);
  // A trip of a column pass over this rank's keys.
  absl::Status RunColumnTrip(const WorkerTask& task, const wire::WorkItem& item,
                             const KvStore::Shard& shard, const Buffer& asked, BatchItem* to);
  absl::StatusOr<std::shared_ptr<const Plan>> PlanOf(const wire::WorkItem& item,
                                                     const KvStore::Shard& shard,
                                                     const Pattern& pattern, const Stop& stop);
  absl::Status VerifyWhatLeaves(const Plan& plan, int rank, const wire::WorkItem& item);
  void Tell(const wire::Work& work, absl::Time begin, wire::WorkDone& done) const;
  TaskOutcome Hand(const WorkerTask& task, absl::Span<const BatchItem> batch, wire::WorkDone done,
                   Buffer partials);
  std::shared_ptr<const BlockSet> KeysOf(ContextId context, const KvStore::Shard& shard,
                                         int64_t kv_tokens);

  KvStore& store_;
  Backend& backend_;
  const Clock& clock_;
  const Owner owner_;
  std::atomic<uint64_t> exchange_bytes_sent_ = 0;
  std::atomic<uint64_t> exchange_bytes_received_ = 0;
  PatternCache patterns_;
  ListStore lists_;
  BoundPatterns bound_;
  std::mutex mutex_;  // of the next two
  std::map<ContextId, Held> held_;
  LruCache<std::shared_ptr<const Plan>, Key, NumbersHash> plans_{64};
};

}  // namespace annulus
