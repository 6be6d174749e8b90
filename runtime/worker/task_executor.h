// TaskExecutor: executes a worker's tasks: it owns the KV store and runs this rank's part of
// calls over it. Thread-safe as far as TaskQueue lets tasks run at once, on whichever threads; one
// thread (a simulation) will do. store()'s counters and the counters here may be read by any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/backend.h"
#include "base/clock.h"
#include "base/trace_context.h"
#include "comm/fabric.h"
#include "runtime/store/kv_store.h"
#include "runtime/worker/task.h"
#include "runtime/worker/timed_backend.h"
#include "runtime/worker/work_runner.h"

namespace annulus {

class TaskExecutor {
 public:
  struct Options {
    int64_t kv_bytes_limit = 0;
    bool kv_in_host_memory = false;  // else KV lies in the backend's own memory
    // Called from Run whenever a task opens an exchange, which moves while somebody polls the
    // fabric's messenger; may be empty.
    std::function<void()> on_exchange = {};
    SpanSink spans = {};  // told of Works whose calls are recorded; may be empty
  };

  // `fabric` and `clock` must outlive this.
  TaskExecutor(std::unique_ptr<Backend> backend, Fabric& fabric, const Clock& clock,
               Options options);

  TaskOutcome Run(WorkerTask task);

  const KvStore& store() const { return store_; }
  // As KvStore; for any thread.
  std::vector<OwnerBytes> TellOwners(size_t owners_max) { return store_.TellOwners(owners_max); }
  // As Backend::health.
  absl::Status health() const { return backend_.health(); }
  // As Backend::device_memory.
  std::optional<DeviceMemory> device_memory() const { return backend_.device_memory(); }
  absl::Duration kernel_time() const { return backend_.busy(); }
  uint64_t appends() const { return appends_.load(std::memory_order_relaxed); }
  uint64_t steps() const { return steps_.load(std::memory_order_relaxed); }
  uint64_t attends() const { return attends_.load(std::memory_order_relaxed); }
  uint64_t exchange_bytes_sent() const { return works_.exchange_bytes_sent(); }
  uint64_t exchange_bytes_received() const { return works_.exchange_bytes_received(); }

 private:
  // How a context was opened: at which epoch and with which holders.
  struct Opened {
    uint64_t epoch = 0;
    std::vector<std::string> addresses;
    std::vector<wire::Copy> copies;
    ContextId context = 0;  // as in wire::Resume
    bool activating = false;
  };

  // `answer` gets what a Read asks for.
  absl::Status Execute(const wire::Open& open, Buffer* answer);
  absl::Status Execute(const wire::Truncate& truncate, Buffer* answer);
  absl::Status Execute(const wire::Fork& fork, Buffer* answer);
  absl::Status Execute(const wire::Resume& resume, Buffer* answer);
  absl::Status Execute(const wire::Read& read, Buffer* answer);
  absl::Status Execute(const wire::Release& release, Buffer* answer);
  TaskOutcome TakeInventory() const;
  TaskOutcome RunWork(const WorkerTask& task);
  // ABORTED unless the context was opened at that epoch.
  absl::Status CheckEpoch(ContextId context, uint64_t epoch) const;
  absl::StatusOr<std::unique_ptr<Exchange>> OpenExchange(ContextId context, uint64_t channel,
                                                         int rank);
  std::string AddressOf(ContextId context, int rank) const;

  TimedBackend backend_;
  Fabric& fabric_;
  const std::function<void()> on_exchange_;
  KvStore store_;
  WorkRunner works_;
  mutable std::mutex mutex_;  // of the next
  std::map<ContextId, Opened> opened_;
  std::atomic<uint64_t> appends_ = 0;
  std::atomic<uint64_t> attends_ = 0;
  std::atomic<uint64_t> steps_ = 0;
};

}  // namespace annulus
