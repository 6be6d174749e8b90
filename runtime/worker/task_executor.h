// TaskExecutor: executes a worker's tasks: it owns the KV store and runs this rank's part of plans
// over it. Thread-safe as far as TaskQueue lets tasks run at once, on whichever threads; one thread
// (a simulation) will do. store()'s counters and the counters here may be read by any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/backend.h"
#include "base/clock.h"
#include "base/lru_cache.h"
#include "comm/fabric.h"
#include "runtime/engine/engine.h"
#include "runtime/store/kv_store.h"
#include "runtime/worker/decode_batch.h"
#include "runtime/worker/task.h"
#include "runtime/worker/timed_backend.h"

namespace annulus {

class TaskExecutor {
 public:
  struct Options {
    int64_t kv_bytes_limit = 0;
    bool kv_in_host_memory = false;  // else KV lies in the backend's own memory
    // Called from Run whenever a task opens an exchange, which moves while somebody polls the
    // fabric's messenger; may be empty.
    std::function<void()> on_exchange = {};
  };

  // `fabric` and `clock` must outlive this.
  TaskExecutor(std::unique_ptr<Backend> backend, Fabric& fabric, const Clock& clock,
               Options options);

  TaskOutcome Run(WorkerTask task);

  // Whether the plan of an attend may move something between workers. Of a context that is held.
  bool Exchanges(const wire::Attend& attend) const;

  const KvStore& store() const { return store_; }
  // As Backend::health.
  absl::Status health() const { return backend_.health(); }
  absl::Duration kernel_time() const { return backend_.busy(); }
  uint64_t appends() const { return appends_.load(std::memory_order_relaxed); }
  uint64_t steps() const { return steps_run_.load(std::memory_order_relaxed); }
  uint64_t attends() const { return attends_.load(std::memory_order_relaxed); }
  uint64_t exchange_bytes_sent() const { return bytes_sent_.load(std::memory_order_relaxed); }
  uint64_t exchange_bytes_received() const {
    return bytes_received_.load(std::memory_order_relaxed);
  }

 private:
  // How a context was opened: at which epoch and with which holders.
  struct Opened {
    uint64_t epoch = 0;
    std::vector<std::string> addresses;
    std::vector<wire::Copy> copies;
    ContextId serves = 0;  // as in wire::Resume
    bool tentative = false;
  };

  absl::Status Open(const wire::Open& open);
  absl::Status Append(const wire::Append& append, const Buffer& packed);
  absl::Status Truncate(const wire::Truncate& truncate);
  absl::Status Fork(const wire::Fork& fork);
  TaskOutcome TakeInventory() const;
  absl::Status Resume(const wire::Resume& resume);
  absl::StatusOr<Buffer> Read(const wire::Read& read);
  absl::Status Release(const wire::Release& release);
  TaskOutcome RunStep(const WorkerTask& task);
  // CANCELLED or DEADLINE_EXCEEDED for a task that nobody waits for any more.
  absl::Status CheckInTime(const WorkerTask& task) const;
  absl::StatusOr<RankResult> Attend(const wire::Attend& attend, WorkerTask& task,
                                    std::vector<TraceSpan>* spans);
  // ABORTED unless the context was opened at that epoch.
  absl::Status CheckEpoch(ContextId context, uint64_t epoch) const;
  absl::StatusOr<std::shared_ptr<const Plan>> PlanOf(const wire::Attend& attend,
                                                     const KvStore::Shard& shard,
                                                     const WorkerTask& task);
  absl::StatusOr<std::unique_ptr<Exchange>> ExchangeFor(const Plan& plan,
                                                        const wire::Attend& attend, int rank);
  absl::Status VerifyWhatLeaves(const Plan& plan, const KvStore::Shard& shard,
                                const wire::Attend& attend);

  TimedBackend backend_;
  Fabric& fabric_;
  const Clock& clock_;
  const std::function<void()> on_exchange_;
  KvStore store_;
  DecodeBatch steps_;
  mutable std::mutex mutex_;  // of the next two
  std::map<ContextId, Opened> opened_;
  LruCache<std::shared_ptr<const Plan>> plans_{64};
  std::atomic<uint64_t> appends_ = 0;
  std::atomic<uint64_t> attends_ = 0;
  std::atomic<uint64_t> steps_run_ = 0;
  std::atomic<uint64_t> bytes_sent_ = 0;
  std::atomic<uint64_t> bytes_received_ = 0;
};

}  // namespace annulus
