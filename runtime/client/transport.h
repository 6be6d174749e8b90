// Transport: how one attempt of a call reaches the service: over gRPC, or straight to a service in
// this process. What is common to both (keys, retries, asynchronous calls) is the client's.
// Thread-safe; calls block until done, until the deadline or until cancelled.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "annulus/client.h"

namespace annulus {

struct Attempt {
  absl::Time deadline = absl::InfiniteFuture();
  CancelToken cancel;
  std::function<void(int64_t, int64_t)> progress;  // as CallOptions
  // Of an append by direct upload: pieces that earlier attempts have committed, and this one adds.
  int64_t* pieces_done = nullptr;
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual absl::StatusOr<ContextInfo> CreateContext(const ContextSpec& spec, const Attempt&) = 0;
  // Piece i of the request has the key's sequence number + i (append_pieces.h).
  virtual absl::StatusOr<AppendResult> Append(const AppendRequest& request, const Attempt&) = 0;
  virtual absl::StatusOr<AttendResult> Attend(const AttendRequest& request, const Attempt&) = 0;
  virtual StepResults Step(absl::Span<const StepRequest> requests, const Attempt&) = 0;
  virtual absl::StatusOr<ContextInfo> Fork(const ForkRequest& request, const Attempt&) = 0;
  virtual absl::StatusOr<ContextInfo> Truncate(const TruncateRequest& request, const Attempt&) = 0;
  virtual absl::Status Release(ContextId context, const Attempt&) = 0;
  virtual std::vector<absl::Status> KeepAlive(absl::Span<const ContextId> contexts,
                                              const Attempt&) = 0;
  virtual absl::StatusOr<ContextInfo> Describe(ContextId context, const Attempt&) = 0;
  virtual absl::StatusOr<std::vector<ContextInfo>> List(const ListRequest& request,
                                                        const Attempt&) = 0;
  virtual absl::StatusOr<ClusterStatus> Status(const Attempt&) = 0;
  virtual ConnectionState connection() const = 0;
};

// Connected when it returns. Errors as Client::Connect.
absl::StatusOr<std::unique_ptr<Transport>> MakeGrpcTransport(const ClientOptions& options);

// Errors as Client::InProcess.
absl::StatusOr<std::unique_ptr<Transport>> MakeInProcessTransport(const InProcessOptions& options);

}  // namespace annulus
