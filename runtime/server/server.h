// RpcServer: a Service offered over gRPC (annulus.proto), with the way in for workers and
// the standard health service beside it. Thread-safe. Each call has a thread: at most transfers_max
// + step_streams_max + short_calls_max + a few.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/protocol/public/tls.h"
#include "runtime/protocol/public/tls_files.h"
#include "runtime/server/join.h"
#include "runtime/server/limits.h"
#include "runtime/service/service.h"

namespace annulus {

class Door;

struct RpcServerOptions {
  std::string listen = "127.0.0.1:0";    // "host:port"; port 0: any free one
  Service* service = nullptr;            // outlives the server
  std::optional<JoinOptions> join = {};  // absent: nobody joins here
  ServerTls tls = {};                    // without a certificate: plain text
  Door* door = nullptr;  // outlives the server; nullptr: everybody may do everything
  RpcLimits limits = {};
  // Callers may ask which services there are, each question on a stream that holds a thread: for
  // development, and only where nobody is asked who it is.
  bool reflection = false;
  ConnectionCounts* counts = nullptr;  // outlives the server, if there is one
};

class RpcServer {
 public:
  // Listens and serves, healthy, when it returns. INVALID_ARGUMENT names an address or a limit that
  // makes no sense, UNAVAILABLE the address that cannot be listened on.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const RpcServerOptions& options);

  virtual ~RpcServer() = default;  // Shutdown(no grace), unless it was called

  virtual int port() const = 0;

  virtual RpcLoad Load() const = 0;
  virtual TlsFiles::Reading tls() const = 0;

  // Whether it takes connections: its accept loop answered within `patience`.
  virtual bool Answers(absl::Duration patience) = 0;

  // What the health service answers for the server and for "annulus.v1.Annulus".
  virtual void SetServing(bool serving) = 0;

  // Reports not serving, refuses new calls and steps, closes streams of steps once they are idle,
  // waits up to `grace` for those under way, then cancels
  // them, and returns when all have ended.
  virtual void Shutdown(absl::Duration grace) = 0;
};

}  // namespace annulus
