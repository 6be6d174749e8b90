// DataServer: the data port of a worker's process: takes uploads over gRPC (data.proto) and hands
// them to the worker through its grants. Who knows no grant gets nothing and takes no memory.
// A grant's secret is worth one append; behind a door that asks, a token must come with it.
// Thread-safe; each upload has a thread, at most puts_max at once. Those without a grant yet make
// room for others.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/protocol/public/tls.h"
#include "runtime/protocol/public/tls_files.h"
#include "runtime/server/acceptor.h"
#include "runtime/server/refusals.h"
#include "runtime/server/stall_watch.h"

namespace annulus {

class Door;
class GrantTable;

struct DataServerOptions {
  std::string listen;            // "host:port", port 0: any free one
  GrantTable* grants = nullptr;  // outlives the server
  ServerTls tls = {};            // without a certificate: plain text
  Door* door = nullptr;          // outlives the server; nullptr: a grant is enough
  int puts_max = 128;            // uploads at once; one peer (peer.h) has at most half
  ClientLimits client = {};
  ConnectionLimits connections = {};
  ConnectionCounts* counts = nullptr;  // outlives the server, if there is one
};

class DataServer {
 public:
  // Listens when it returns. INVALID_ARGUMENT for a malformed address, UNAVAILABLE for one that
  // cannot be listened on; both name it.
  static absl::StatusOr<std::unique_ptr<DataServer>> Start(const DataServerOptions& options);

  virtual ~DataServer() = default;  // cancels what is under way

  // The host of `listen` and the port, after "tls://" where the port speaks TLS.
  virtual std::string address() const = 0;
  virtual uint64_t bytes_received() const = 0;  // payload, in all
  virtual int64_t uploads() const = 0;          // under way
  virtual const Refusals& refusals() const = 0;
  virtual TlsFiles::Reading tls() const = 0;
  // Whether it takes connections: its accept loop answered within `patience`.
  virtual bool Answers(absl::Duration patience) = 0;
};

}  // namespace annulus
