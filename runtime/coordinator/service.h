// Service: what a coordinator does for its callers, free of any rpc. The gRPC server turns messages
// into these calls; the coordinator process implements them; tests call them directly.
// Thread-safe; calls block. Errors as in client.h.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "annulus/types.h"
#include "runtime/direct_append.h"

namespace annulus {

// How a caller's patience reaches the work: past the deadline, or once *cancelled, a call ends soon
// with DEADLINE_EXCEEDED or CANCELLED and its work on the workers stops.
struct CallContext {
  absl::Time deadline = absl::InfiniteFuture();
  std::function<bool()> cancelled;  // may be empty
};

// Gets the grant of a direct append before the call ends. An error ends the call.
using GrantSink = std::function<absl::Status(const AppendGrant& grant)>;

class Service {
 public:
  virtual ~Service() = default;

  virtual absl::StatusOr<ContextInfo> CreateContext(const ContextSpec& spec,
                                                    const CallContext& call) = 0;
  virtual absl::StatusOr<AppendResult> Append(const AppendRequest& request,
                                              const CallContext& call) = 0;
  // Appends what the caller uploads to the workers once `granted` has got the grant, on this thread
  // and at most once: not for a repetition of what is already there. Returns when all of it is
  // committed. FAILED_PRECONDITION if some worker has no data port.
  virtual absl::StatusOr<AppendResult> AppendDirect(const DirectAppend& request,
                                                    const GrantSink& granted,
                                                    const CallContext& call) = 0;
  virtual absl::StatusOr<AttendResult> Attend(const AttendRequest& request,
                                              const CallContext& call) = 0;
  // The steps of many contexts together: each worker gets one message, however many there are. One
  // result per request; one that fails leaves the others alone.
  virtual std::vector<absl::StatusOr<StepResult>> Step(absl::Span<const StepRequest> requests,
                                                       const CallContext& call) = 0;
  virtual absl::StatusOr<ContextInfo> Fork(const ForkRequest& request, const CallContext& call) = 0;
  virtual absl::StatusOr<ContextInfo> Truncate(const TruncateRequest& request,
                                               const CallContext& call) = 0;
  virtual absl::StatusOr<std::vector<ContextInfo>> List(const ListRequest& request,
                                                        const CallContext& call) = 0;
  virtual absl::Status Release(ContextId context, const CallContext& call) = 0;
  virtual absl::StatusOr<ContextInfo> Describe(ContextId context, const CallContext& call) = 0;
  // Renews the contexts' leases, as any other call on them. One status for each, in order:
  // NOT_FOUND, UNAVAILABLE while it is being recovered. INVALID_ARGUMENT of more than
  // kKeepAliveMax.
  virtual std::vector<absl::Status> KeepAlive(absl::Span<const ContextId> contexts,
                                              const CallContext& call) = 0;
  virtual absl::StatusOr<ClusterStatus> Status(const CallContext& call) = 0;
};

}  // namespace annulus
