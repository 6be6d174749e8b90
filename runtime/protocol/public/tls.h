// TLS of servers (tls_files.h) and of clients. Certificates and keys are files in PEM, looked at
// again while the process lives, so that they are replaced without a restart; connections that are
// open stay as they are. TLS 1.2 and 1.3. Thread-safe functions.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace grpc {
class ChannelCredentials;
}  // namespace grpc

namespace annulus {

struct ServerTls {
  std::string cert = {};       // the server's chain; empty: no TLS
  std::string key = {};        // of it
  std::string client_ca = {};  // whose certificates clients must show; empty: none are asked for
  absl::Duration reload_period = absl::Seconds(5);  // whole seconds

  bool on() const { return !cert.empty(); }
};

// Of a file in PEM.
inline constexpr size_t kPemBytesMax = 1 << 20;

// What lies in a server's files.
struct ServerPem {
  std::string cert = {};
  std::string key = {};
  std::string client_ca = {};
  absl::Time expiry;  // when the first certificate of the server's chain ends
};

// INVALID_ARGUMENT names tls_cert, tls_key or tls_client_ca, the file and what is wrong with it.
absl::StatusOr<ServerPem> ReadServerTls(const ServerTls& tls);

struct ClientTls {
  std::string ca = {};    // whose certificates servers must show; empty: no TLS
  std::string cert = {};  // that the client shows; empty: none
  std::string key = {};   // of it

  bool on() const { return !ca.empty(); }
};

// Those of one client are made once for all of its channels. A server's certificate must name the
// host that it is reached by. INVALID_ARGUMENT names tls_ca, tls_cert or tls_key, the file and what
// is wrong with it.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    const ClientTls& tls);

}  // namespace annulus
