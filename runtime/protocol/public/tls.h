// The files that servers and clients speak TLS by, certificates and keys in PEM. They are looked at
// again while the process lives (tls_files.h), so that they are replaced without a restart;
// connections that are open stay as they are. TLS 1.2 and 1.3. Thread-safe functions.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace annulus {

struct ServerTls {
  std::string cert = {};       // the server's chain; empty: no TLS
  std::string key = {};        // of it
  std::string client_ca = {};  // whose certificates clients must show; empty: none are asked for
  absl::Duration reload_period = absl::Seconds(5);

  bool on() const { return !cert.empty(); }
};

// A server's certificate must name the host that it is reached by.
struct ClientTls {
  std::string ca = {};    // whose certificates servers must show; empty: no TLS
  std::string cert = {};  // that the client shows; empty: none
  std::string key = {};   // of it
  absl::Duration reload_period = absl::Seconds(2);

  bool on() const { return !ca.empty(); }
};

// Of a file in PEM.
inline constexpr size_t kPemBytesMax = 1 << 20;

// What lies in the files, as text.
struct TlsPem {
  std::string cert = {};  // empty: a client's that shows none
  std::string key = {};
  std::string authorities = {};  // empty: a server's that asks for no certificates
  absl::Time expiry;             // when the first certificate of the chain in cert ends
};

// INVALID_ARGUMENT names the field (tls_cert, tls_key, and tls_client_ca of a server or tls_ca of a
// client), the file and what is wrong with it.
absl::StatusOr<TlsPem> ReadTls(const ServerTls& tls);
absl::StatusOr<TlsPem> ReadTls(const ClientTls& tls);

}  // namespace annulus
