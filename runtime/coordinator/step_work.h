// The tensor work of a Step: packs each worker's part of all items into one message, merges what
// each worker answers, item by item, and finalises. Not thread-safe; the planner may be shared.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "attention/partial.h"
#include "base/clock.h"
#include "base/lru_cache.h"
#include "base/stop.h"
#include "runtime/coordinator/call_work.h"
#include "runtime/coordinator/pattern_cache.h"

namespace annulus {

// What the steps of a context have in common from one to the next: its parsed patterns, and which
// ranks hold something that the queries see. The latter is worked out for whole query blocks, so
// that it holds for 64 steps and all layers of a pattern. Thread-safe.
class StepPlanner {
 public:
  PatternCache& patterns() { return patterns_; }

  // By rank; perhaps some more, never fewer. What `stop` says once it has stopped.
  absl::StatusOr<std::shared_ptr<const std::vector<bool>>> Readers(const ShardMap& map,
                                                                   const Pattern& pattern,
                                                                   TokenRange q, const Stop& stop);

 private:
  struct Known {
    BlockRun q_blocks;
    std::shared_ptr<const std::vector<bool>> readers;
  };

  using Key = std::array<int64_t, 3>;  // context, epoch, pattern

  PatternCache patterns_;
  std::mutex mutex_;
  LruCache<Known, Key, NumbersHash> readers_{4096};
};

class StepWork final : public CallWork {
 public:
  // All must outlive this. `stop`: once the caller does not wait any more.
  StepWork(absl::Span<const StepRequest> requests, absl::Time deadline, StepPlanner& planner,
           const Clock& clock, Stop stop = {})
      : requests_(requests),
        deadline_(deadline),
        planner_(planner),
        clock_(clock),
        stop_(std::move(stop)) {}

  absl::StatusOr<PreparedWork> Prepare(const action::Admit& admit) override;
  absl::Status OnAnswer(RankAnswer answer) override;

  // After the call finished: one for each request.
  std::vector<absl::StatusOr<StepResult>> TakeResults(const action::Finish& finish) &&;

 private:
  struct Item {
    const action::AdmittedItem* admitted = nullptr;
    bool refused = false;
    TokenRange kv;  // that it appends; its end is the length that is attended
    std::shared_ptr<const std::vector<bool>> readers;  // null without queries
    Partial merged;
  };
  // An item's part of one worker's message.
  struct Part {
    size_t item = 0;
    int rank = 0;  // the worker's in the item's context
    HeadRange q_heads;
    bool reads = false;
  };

  absl::Status PrepareItem(size_t index, Item& item);
  std::vector<Part> PartsOf(WorkerId worker) const;
  Message Pack(CallId call, const std::vector<Part>& parts) const;
  std::byte* PackQueries(const Part& part, std::byte* at) const;

  const absl::Span<const StepRequest> requests_;
  const absl::Time deadline_;
  StepPlanner& planner_;
  const Clock& clock_;
  const Stop stop_;

  action::Admit admit_;
  std::vector<Item> items_;
  std::vector<std::vector<Part>> parts_;  // by rank of the call
};

}  // namespace annulus
