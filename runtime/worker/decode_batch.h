// DecodeBatch: executes a Step on one worker: stores what each item appends, then solves the
// queries of all items as one batch, straight into the answer. An item that fails leaves the others
// alone. Thread-safe as far as TaskQueue lets tasks run at once.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/backend.h"
#include "base/lru_cache.h"
#include "runtime/store/kv_store.h"
#include "runtime/worker/task.h"

namespace annulus {

class DecodeBatch {
 public:
  // Both must outlive this.
  DecodeBatch(KvStore& store, Backend& backend) : store_(store), backend_(backend) {}

  // The StepDone of a task that is a Step. `allowed` says whether a context is held here at an
  // epoch, and whether it is still time.
  using Allowed = std::function<absl::Status(ContextId, uint64_t epoch)>;
  Message Run(const WorkerTask& task, const Allowed& allowed);

  void Forget(ContextId context) {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_.erase(context);
  }

 private:
  // The blocks that this rank holds of a context's first `blocks`: the same for 64 steps and all
  // layers.
  struct Held {
    int64_t blocks = 0;
    BlockSet keys;
  };
  // What an item asks of the backend; without rows if it asks for nothing.
  struct Problem {
    AttendArgs args;
    std::shared_ptr<const Pattern> asked;  // null: the context's
    size_t answer_bytes() const;
  };

  absl::Status Store(const wire::StepItem& item, absl::Span<const std::byte> packed);
  absl::StatusOr<Problem> SetUp(const wire::StepItem& item, const std::byte* queries,
                                const std::atomic<bool>* cancel);
  absl::StatusOr<std::shared_ptr<const Pattern>> Parse(const std::string& text, int kv_heads);
  const BlockSet& KeysOf(ContextId context, const KvStore::Shard& shard, int64_t kv_tokens);
  void Solve(const std::vector<Problem>& problems, std::vector<absl::Status>* statuses);
  // INVALID_ARGUMENT names a row that has no answer.
  static absl::Status CheckRange(const AttendArgs& args, int layer);

  KvStore& store_;
  Backend& backend_;
  std::mutex mutex_;  // of the next two
  std::map<ContextId, Held> held_;
  LruCache<std::shared_ptr<const Pattern>> patterns_{64};
};

}  // namespace annulus
