// Internal to comm/ucx: owners of UCX handles, move-free and small, and the state under the one
// lock of a fabric. Not thread-safe: the fabric's lock guards every call.
#pragma once

#include <ucp/api/ucp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "comm/link_key.h"
#include "comm/ucx/ucx_fabric.h"

namespace annulus {

absl::Status UcxError(absl::string_view what, ucs_status_t status);

struct UcxContextDeleter {
  void operator()(ucp_context_h context) const { ucp_cleanup(context); }
};
using UcxContext = std::unique_ptr<ucp_context, UcxContextDeleter>;

struct UcxWorkerDeleter {
  void operator()(ucp_worker_h worker) const { ucp_worker_destroy(worker); }
};
using UcxWorker = std::unique_ptr<ucp_worker, UcxWorkerDeleter>;

// Acts inside a callback of UCX's, which nothing may be thrown through. False: there was no memory.
template <typename Act>
bool Guarded(const Act& act) noexcept {
  try {
    act();
    return true;
  } catch (...) {
    return false;
  }
}

// Errors of peers are reported through our own status; UCX's chatter would be said twice.
void SilenceUcx();

// Options reach UCX by ucp_config_modify, never by the environment: Open MPI in the same process
// reads that too.
absl::StatusOr<UcxContext> MakeUcxContext(const UcxOptions& options);
absl::StatusOr<UcxWorker> MakeUcxWorker(ucp_context_h context, const UcxOptions& options);

// The worker's own address, as UCX's bytes.
absl::StatusOr<std::string> UcxWorkerAddress(ucp_worker_h worker);

// How many endpoints a worker has: ours, and those that UCX opens by itself to answer who connects.
// UCX 1.13 ends the process that destroys a worker in which such an answer waits for room in the
// other side's queue. Below zero: UCX does not say.
int UcxEndpoints(ucp_context_h context, ucp_worker_h worker);

// A fabric's identity, which is public: a hash of the secret that only it can say goodbye with.
uint64_t UcxIdentityOf(const LinkKey& farewell);

// A printable address: "ucx:" and base64 of a fabric's identity, a checksum and UCX's bytes.
// The checksum stands guard since UCX dies of malformed bytes.
struct UcxAddress {
  uint64_t fabric = 0;  // its identity
  std::string worker;

  std::string ToString() const;
  static absl::StatusOr<UcxAddress> Parse(absl::string_view text);
};

}  // namespace annulus
