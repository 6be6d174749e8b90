// The C++ client of an Annulus service, over the network or with the service inside this process.
// Views in, owned results out. The reference page (runtime/client/README.md) has every call's
// shapes, units and errors. This header brings all others of the library.
//
//   auto client = annulus::Client::Connect({.endpoint = "localhost:7070"});
//   auto context = (*client)->CreateContext({.heads = 8, .kv_heads = 4, .head_dim = 64, …});
//   (*client)->Append({.context = context->id, .k = k, .v = v});
//   auto answer = (*client)->Attend({.context = context->id, .q_start = n - 1, .kv_len = n, .q =
//   q});
//
// Thread-safe: calls may be made from any threads at once; calls on one context's layer that must
// be ordered are the caller's to order. Calls block until done or until `timeout`.
//
// Asynchronous calls: *Async returns at once. OK: `done` will run exactly once, on one of the
// client's own threads; an error (RESOURCE_EXHAUSTED naming async_calls_max, INVALID_ARGUMENT for
// an empty `done`): it will not run. What views point to must stay until then. `done` may make
// calls of the client, blocking ones too, and holds up nothing but its own thread; it must not
// destroy the client.
//
// Errors: INVALID_ARGUMENT never retry; UNAVAILABLE retry; DATA_LOSS the KV is gone, upload again;
// RESOURCE_EXHAUSTED back off; NOT_FOUND no such context; UNAUTHENTICATED, PERMISSION_DENIED who
// calls; DEADLINE_EXCEEDED; CANCELLED. RetryOptions says what the client has retried by then.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "annulus/cancel_token.h"
#include "annulus/partials.h"
#include "annulus/retry_hint.h"
#include "annulus/types.h"

namespace annulus {

// What a call is tried again for: UNAVAILABLE, and RESOURCE_EXHAUSTED that says when to come back.
// Appends, compressions and steps carry keys by which the service knows a repetition; creating,
// forking and truncating contexts have none and are tried again only when the service refused them.
struct RetryOptions {
  int attempts_max = 4;  // of one call, the first included; 1: never again
  // Before the n-th retry: backoff_min · 2ⁿ⁻¹ up to backoff_max, half of it at random; longer where
  // the service asks for more. No retry begins past the call's deadline.
  absl::Duration backoff_min = absl::Milliseconds(20);
  absl::Duration backoff_max = absl::Seconds(2);
  // Retries that all calls of the client may make in a row; each successful call gives a tenth of
  // one back. A service that is down is not run over when it returns.
  int budget = 10;
};

// How Append's tensors reach the workers that store them. Neither falls back on the other.
enum class Upload {
  kDirect,  // straight to their data ports: the service itself sees no byte of KV
  kRelay,   // through the service, where clients cannot reach the workers
};

struct ClientOptions {
  std::string endpoint;                                // "host:port"
  absl::Duration connect_timeout = absl::Seconds(10);  // more than 0
  int64_t chunk_bytes = 1 << 20;                       // of a streamed tensor, ≤ 63/16 MiB
  int async_calls_max = 16;  // asynchronous calls at once; each has a thread
  Upload upload = Upload::kDirect;
  RetryOptions retry = {};
  // Files, looked at again when they change; empty: none. tls_ca: PEM with the authorities whose
  // certificates servers must show; without it connections are in plain text, and so is the token.
  std::string tls_ca = {};
  std::string tls_cert = {};  // that the client shows, with its key
  std::string tls_key = {};
  std::string token_file = {};  // the bearer token by which the service knows the caller
};

// A whole service within this process: a coordinator and workers in threads of their own, over
// memory, without any port. It ends with the client, and what it holds is gone. It logs errors
// only.
struct InProcessOptions {
  int workers = 1;                            // up to 256
  std::string backend = "auto";               // of every worker: "auto", "cpu", "reference"
  int threads = 0;                            // for computing, per worker; 0: one per core
  int64_t kv_bytes_limit = int64_t{1} << 30;  // per worker
  int async_calls_max = 16;
  RetryOptions retry = {};
};

struct CallOptions {
  absl::Duration timeout = absl::InfiniteDuration();
  CancelToken cancel = {};
  // Of Append, called on the calling thread as payload leaves: (bytes done, bytes in all). A retry
  // begins anew.
  std::function<void(int64_t, int64_t)> progress = {};
  // The span that the call belongs to, as W3C Trace Context writes it; empty: none. The service
  // puts its own spans below it (`--trace-out`) and its trace's id into logs.
  std::string traceparent = {};
};

enum class ConnectionState {
  kReady,       // connected
  kConnecting,  // not yet, or not any more; the next call connects
  kDown,        // the last try to connect failed; tried again within a second
};

template <typename Result>
using Completion = absl::AnyInvocable<void(absl::StatusOr<Result>)>;

class Client {
 public:
  // Waits until the service answers, or UNAVAILABLE after connect_timeout naming the endpoint.
  // INVALID_ARGUMENT names an option that makes no sense.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const ClientOptions& options);

  // INVALID_ARGUMENT names an option that makes no sense.
  static absl::StatusOr<std::unique_ptr<Client>> InProcess(const InProcessOptions& options);

  // Waits for asynchronous calls under way: cancel them first to be quick.
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  absl::StatusOr<ContextInfo> CreateContext(const ContextSpec& spec, const CallOptions& call = {});
  absl::StatusOr<AppendResult> Append(const AppendRequest& request, const CallOptions& call = {});
  absl::StatusOr<AttendResult> Attend(const AttendRequest& request, const CallOptions& call = {});
  // The lists by which the queries of an Attend, or of several, see the keys that these choose.
  // INVALID_ARGUMENT for a pattern in which no word chooses keys by data.
  absl::StatusOr<SelectResult> Select(const SelectRequest& request, const CallOptions& call = {});
  // Appends the rows of the keys that queries vote for to another context. Repeated while that is
  // in flight, or after, it appends nothing twice.
  absl::StatusOr<CompressResult> Compress(const CompressRequest& request,
                                          const CallOptions& call = {});
  // Steps of many contexts together, up to 65,536, each (context, layer) at most once: one message
  // each way over a stream that stays open, and one message to each worker; what is too much for
  // one message is cut. One result per request, in order; one that fails leaves the others alone.
  StepResults Step(absl::Span<const StepRequest> requests, const CallOptions& call = {});
  absl::StatusOr<ContextInfo> Fork(const ForkRequest& request, const CallOptions& call = {});
  absl::StatusOr<ContextInfo> Truncate(const TruncateRequest& request,
                                       const CallOptions& call = {});
  absl::Status Release(ContextId context, const CallOptions& call = {});
  // Renews the leases of contexts, as any call on them does. One status for each, in order. The
  // client does so by itself for those that it made, and not for others.
  std::vector<absl::Status> KeepAlive(absl::Span<const ContextId> contexts,
                                      const CallOptions& call = {});
  // One context.
  absl::StatusOr<ContextInfo> Describe(ContextId context, const CallOptions& call = {});
  absl::StatusOr<std::vector<ContextInfo>> List(const ListRequest& request = {},
                                                const CallOptions& call = {});
  // The cluster: epoch, every context, every worker.
  absl::StatusOr<ClusterStatus> Status(const CallOptions& call = {});

  absl::Status AppendAsync(AppendRequest request, CallOptions call, Completion<AppendResult> done);
  absl::Status AttendAsync(AttendRequest request, CallOptions call, Completion<AttendResult> done);
  absl::Status StepAsync(std::vector<StepRequest> requests, CallOptions call,
                         absl::AnyInvocable<void(StepResults)> done);

  // Does not wait and does not connect.
  ConnectionState connection() const;

 private:
  class Impl;
  explicit Client(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace annulus
