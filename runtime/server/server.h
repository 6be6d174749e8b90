// RpcServer: a Service offered over gRPC (annulus.proto), with a rendezvous beside it, the standard
// health service and, where nobody is asked for a token, reflection. Every bound below is named in
// the error of the call that meets it. Thread-safe. Calls run on at most in_flight_max + a few
// threads; each open stream of steps has one of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/rendezvous.h"
#include "runtime/protocol/public/tensor_stream.h"
#include "runtime/protocol/public/tls.h"
#include "runtime/service/service.h"

namespace annulus {

class Door;

struct RpcLimits {
  StreamLimits stream = {};
  int in_flight_max = 64;                            // calls that carry tensors or wait
  int64_t buffer_bytes_max = int64_t{2} << 30;       // of all requests' tensors together
  int64_t transport_bytes_max = int64_t{256} << 20;  // of gRPC's own buffers, all connections
  int64_t chunk_bytes = 1 << 20;                     // of a streamed reply's messages, < 4 MiB
  int step_streams_max = 256;  // open at once, idle or not: as many as batches are sent at once
  // How long a call waits for its client to send what it owes or to read what it is sent; then it
  // is cut.
  absl::Duration client_stall_max = absl::Seconds(10);
};

struct RpcServerOptions {
  std::string listen = "127.0.0.1:0";  // "host:port"; port 0: any free one
  Service* service = nullptr;          // outlives the server
  Rendezvous* rendezvous = nullptr;    // outlives the server; nullptr: not offered
  ServerTls tls = {};                  // without a certificate: plain text
  Door* door = nullptr;                // outlives the server; nullptr: everybody may do everything
  RpcLimits limits = {};
};

class RpcServer {
 public:
  // Listens and serves, healthy, when it returns. INVALID_ARGUMENT names an address or a limit that
  // makes no sense, UNAVAILABLE the address that cannot be listened on.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const RpcServerOptions& options);

  virtual ~RpcServer() = default;  // Shutdown(no grace), unless it was called

  virtual int port() const = 0;

  // What the health service answers for the server and for "annulus.v1.Annulus".
  virtual void SetServing(bool serving) = 0;

  // Reports not serving, refuses new calls and steps, closes streams of steps once they are idle,
  // waits up to `grace` for those under way, then cancels
  // them, and returns when all have ended.
  virtual void Shutdown(absl::Duration grace) = 0;
};

}  // namespace annulus
