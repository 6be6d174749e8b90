// GrantTable: the uploads that the coordinator told this worker to expect (wire::ExpectUpload),
// between the worker, which learns of them and stores what came, and the data port, where the bytes
// come.
//
// A grant is claimed once, by whoever names it and its secret, and is over when its bytes have been
// handed on, when its time is over, or once it is revoked: then nothing of it can be stored any
// more, however late its bytes come. Memory for an upload is reserved before its first byte is read
// and given back when it is stored or given up.
// Thread-safe. Outlives the worker and the uploads.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "annulus/buffer.h"
#include "base/clock.h"
#include "base/shared_bound.h"
#include "runtime/protocol/cluster/wire.h"
#include "runtime/worker/task.h"

namespace annulus {

class GrantTable {
 public:
  // upload_bytes_max: of all uploads that are under way or wait to be stored; a tenant's, or else a
  // peer's, are at most half.
  explicit GrantTable(int64_t upload_bytes_max, const Clock& clock = Clock::Real());

  // The worker's side. `take` gets each Work whose tensors are whole, as
  // CoordinatorLink::Options::take; empty: there is no worker, and uploads are refused.
  void SetTake(std::function<bool(WorkerTask& task)> take);
  void Add(wire::ExpectUpload expect);
  void Revoke(ContextId context, std::optional<int> layer);  // absent: all layers
  void RevokeAll();

  // One upload that was claimed. Of one thread. Given up when it is destroyed before Finish.
  class Upload {
   public:
    ~Upload();
    Upload(const Upload&) = delete;
    Upload& operator=(const Upload&) = delete;

    // Takes what comes next.
    // INVALID_ARGUMENT if they are more than expected, or if some value is not finite: the service
    // never stores what would spoil every answer that sees it.
    absl::Status Add(absl::string_view data);
    // Hands the upload to the worker, whose coordinator will hear how it went. INVALID_ARGUMENT if
    // it is not whole, ABORTED if the grant was revoked, RESOURCE_EXHAUSTED if the worker
    // has no room for one more task.
    absl::Status Finish();

   private:
    friend class GrantTable;
    Upload(GrantTable* table, wire::ExpectUpload expect, std::shared_ptr<const void> reserved,
           std::function<void()> on_revoked);

    GrantTable* const table_;
    const wire::ExpectUpload expect_;
    const std::function<void()> on_revoked_;
    std::shared_ptr<const void> reserved_;
    Buffer payload_;
    size_t received_ = 0;
    size_t checked_ = 0;    // of what was received: whole values
    bool revoked_ = false;  // under the table's mutex
  };

  // Waits for the grant up to `wait`: its client may be faster than its coordinator.
  // PERMISSION_DENIED, the same and as late, for a grant that is unknown and for a wrong secret;
  // RESOURCE_EXHAUSTED names upload_bytes_max. `peer`: who brings it, where the grant is of no
  // tenant. `on_revoked` runs at most once, on any thread and never after the upload is gone; it
  // must not use the table.
  absl::StatusOr<std::unique_ptr<Upload>> Claim(uint64_t grant, absl::string_view secret,
                                                const std::string& peer, absl::Duration wait,
                                                std::function<void()> on_revoked);

  int64_t upload_bytes() const;

 private:
  struct Grant {
    wire::ExpectUpload expect;
    absl::Time deadline;
    Upload* upload = nullptr;  // that claimed it
  };

  // Ends grants of which `over` holds. With the mutex held.
  template <typename Over>
  void End(Over over);
  absl::StatusOr<std::shared_ptr<const void>> Reserve(const std::string& peer, uint64_t bytes);

  struct Bytes {
    std::mutex mutex;
    SharedBound bound;  // under the mutex
  };

  const Clock& clock_;
  // Shared, since a worker's last tasks may go after the table.
  const std::shared_ptr<Bytes> bytes_;
  std::mutex mutex_;
  std::condition_variable added_;
  std::function<bool(WorkerTask&)> take_;  // under mutex_, as all that follows
  std::map<uint64_t, Grant> grants_;       // by request
};

}  // namespace annulus
