// The C++ client of an Annulus service. Views in, owned results out; no gRPC type is visible.
//
//   auto client = annulus::Client::Connect({.endpoint = "localhost:7070"});
//   auto context = (*client)->CreateContext({.heads = 8, .kv_heads = 4, .head_dim = 64, …});
//   (*client)->Append({.context = context->id, .k = k, .v = v});
//   auto answer = (*client)->Attend({.context = context->id, .q_start = n - 1, .kv_len = n, .q =
//   q});
//
// Thread-safe: calls may be made from any threads at once; calls on one context's layer that must
// be ordered are the caller's to order. Calls block until done or until `timeout`. Errors:
// INVALID_ARGUMENT never retry; UNAVAILABLE retry; DATA_LOSS the context's KV is gone, upload
// again; RESOURCE_EXHAUSTED back off; NOT_FOUND no such context; DEADLINE_EXCEEDED.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/types.h"

namespace annulus {

struct ClientOptions {
  std::string endpoint;  // "host:port"
  absl::Duration connect_timeout = absl::Seconds(10);
  int64_t chunk_bytes = 1 << 20;  // of a streamed tensor, < 4 MiB
};

struct CallOptions {
  absl::Duration timeout = absl::InfiniteDuration();
  // Called on the calling thread as payload leaves: (bytes done, bytes in all).
  std::function<void(int64_t, int64_t)> progress;
};

class Client {
 public:
  // Waits until the service answers, or UNAVAILABLE after connect_timeout naming the endpoint.
  // INVALID_ARGUMENT names an option that makes no sense.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const ClientOptions& options);

  virtual ~Client() = default;

  virtual absl::StatusOr<ContextInfo> CreateContext(const ContextSpec& spec,
                                                    const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<AppendResult> Append(const AppendRequest& request,
                                              const CallOptions& call = {}) = 0;
  virtual absl::StatusOr<AttendResult> Attend(const AttendRequest& request,
                                              const CallOptions& call = {}) = 0;
  virtual absl::Status Release(ContextId context, const CallOptions& call = {}) = 0;
  // One context.
  virtual absl::StatusOr<ContextInfo> Describe(ContextId context, const CallOptions& call = {}) = 0;
  // The cluster: epoch, every context, every worker.
  virtual absl::StatusOr<ClusterStatus> Status(const CallOptions& call = {}) = 0;
};

}  // namespace annulus
