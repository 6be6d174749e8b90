// A worker of a cluster: holds the KV pages that the coordinator places on it and computes partials
// where they lie. Its threads take turns at waiting for messages and run the tasks that come, as
// many at once as TaskQueue allows: no decode step waits for a prefill. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "attention/backend.h"
#include "base/clock.h"
#include "base/histogram.h"
#include "base/trace_context.h"
#include "comm/fabric.h"
#include "runtime/worker/link_state.h"

namespace annulus {

class GrantTable;

struct WorkerOptions {
  std::unique_ptr<Fabric> fabric;
  std::string coordinator_address;  // Coordinator::fabric_address()
  // What opens the coordinator's door (Coordinator::AdmitWorker); absent: a key of our own, for one
  // that hears strangers.
  std::optional<LinkKey> coordinator_key;
  std::string coordinator_name;  // for people, in logs; empty: its address
  std::string name;              // for people, in logs and errors; the id comes from joining
  std::unique_ptr<Backend> backend;
  // Whether KV lies in host memory although the backend has a memory of its own, which it is then
  // copied to for each call: for contexts that do not fit there.
  bool kv_in_host_memory = false;
  int64_t kv_bytes_limit = int64_t{1} << 30;
  absl::Duration heartbeat_period = absl::Milliseconds(100);
  absl::Duration heartbeat_timeout = absl::Seconds(1);  // a coordinator silent for longer is gone
  // How long a worker whose coordinator is gone keeps what it holds and tries to join again, the
  // same or another one. 0: it is lost at once.
  absl::Duration rejoin_timeout = absl::ZeroDuration();
  // Where clients upload straight to this worker, and the grants of whoever listens there
  // (runtime/server/data_server.h); null: nowhere. They outlive the worker.
  std::string data_address;
  GrantTable* grants = nullptr;
  const Clock* clock = &Clock::Real();
  SpanSink spans = {};  // told of tasks whose calls are recorded; may be empty
};

struct WorkerSnapshot {
  uint64_t id = 0;  // 0 until joined
  LinkState state = LinkState::kJoining;
  std::string backend;
  int64_t kv_bytes = 0;
  int64_t kv_bytes_limit = 0;
  int64_t table_bytes = 0;  // of contexts and layers, beside pages
  int64_t contexts = 0;
  uint64_t attends = 0;  // finished, whether well or not
  uint64_t appends = 0;
  uint64_t steps = 0;
  uint64_t bytes_sent = 0;  // payload, over messages and exchanges
  uint64_t bytes_received = 0;
  int64_t kv_bytes_evicted = 0;               // that KV-efficient contexts have let go of
  uint64_t tasks = 0;                         // begun, of any kind
  Histogram::Reading queue_wait;              // seconds until they began
  double kernel_s = 0;                        // spent in the backend
  std::optional<DeviceMemory> device_memory;  // of its GPU, if it has one
};

class Worker {
 public:
  // Starts the threads; joining goes on in the background and is tried again until it works.
  // INVALID_ARGUMENT without a fabric or a backend, or for a limit below one. An address that is
  // malformed makes the worker lost.
  static absl::StatusOr<std::unique_ptr<Worker>> Start(WorkerOptions options);

  // Stops the threads; running work is cancelled.
  ~Worker();

  // OK once the coordinator has taken this worker in; DEADLINE_EXCEEDED names its address;
  // UNAVAILABLE if it was lost meanwhile.
  absl::Status WaitUntilJoined(absl::Time deadline);

  // Whether the coordinator, once joined, is gone for good (or refuses this worker). Final:
  // what is held here will never be asked for again, so the process should exit with an error.
  bool lost() const;

  // Whether the coordinator is gone and this worker tries to join again.
  bool rejoining() const;
  // Where the coordinator is now, if it came back elsewhere, and the key that it admits now.
  void SetCoordinatorAddress(const std::string& address,
                             const std::optional<LinkKey>& key = std::nullopt);

  // Asks the coordinator to move what is held here to other workers, and to place nothing new here.
  void Leave();
  // Whether that is done. Final: the process should end.
  bool left() const;

  WorkerSnapshot Snapshot() const;

 private:
  class Impl;
  explicit Worker(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus
