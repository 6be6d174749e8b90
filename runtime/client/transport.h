// Transport: how one attempt of a call reaches the service: over gRPC, or straight to a service in
// this process. What is common to both (keys, retries, asynchronous calls) is the client's.
// Thread-safe; calls block until done, until the deadline or until cancelled.
#pragma once

#include <functional>
#include <memory>

#include "annulus/client.h"
#include "runtime/service/calls.h"

namespace annulus {

struct Attempt {
  absl::Time deadline = absl::InfiniteFuture();
  CancelToken cancel;
  std::function<void(int64_t, int64_t)> progress;  // as CallOptions
  std::string traceparent = {};
  // Of an append: piece i of the request has the key's sequence number + i (append_pieces.h). By
  // direct upload: the pieces that earlier attempts have committed, and this one adds.
  int64_t* pieces_done = nullptr;
};

class Transport : public Answerer<Attempt> {
 public:
  virtual ConnectionState connection() const = 0;
};

// Connected when it returns. Errors as Client::Connect.
absl::StatusOr<std::unique_ptr<Transport>> MakeGrpcTransport(const ClientOptions& options);

// Errors as Client::InProcess.
absl::StatusOr<std::unique_ptr<Transport>> MakeInProcessTransport(const InProcessOptions& options);

}  // namespace annulus
