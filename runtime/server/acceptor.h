// Acceptor: the door of a gRPC server. It listens and hands each connection to the server, as long
// as there are fewer than connections_max, of one peer (base/peer_address.h) fewer than half as
// many, and of one peer no more than connection_rate_max a second: the others are closed at once,
// which costs little. gRPC's own accept loop has no bounds, and does not come back once the process
// has run out of descriptors. Thread-safe. Has one thread.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/unique_fd.h"

namespace grpc {
class ServerBuilder;
namespace experimental {
class ExternalConnectionAcceptor;
}  // namespace experimental
}  // namespace grpc

namespace annulus {

class TlsFiles;

struct ConnectionLimits {
  // Fewer where the process may have fewer descriptors: some are left for everything else.
  int connections_max = 4096;
  // New ones a second, of one peer: as many at once after a second without any.
  int connection_rate_max = 1000;
  // Whoever has not completed a handshake by then, TLS and HTTP/2, is cut.
  absl::Duration handshake_max = absl::Seconds(10);
};

// INVALID_ARGUMENT names a limit that makes no sense.
absl::Status CheckLimits(const ConnectionLimits& limits);

// What doors have seen; read by metrics. Thread-safe.
struct ConnectionCounts {
  std::atomic<int64_t> open = 0;
  std::atomic<uint64_t> refused = 0;  // beyond a bound
  std::atomic<uint64_t> failed = 0;   // for want of descriptors or memory
  // Over TLS: connections that ended before their handshake was done.
  std::atomic<uint64_t> handshakes_failed = 0;
};

class Acceptor {
 public:
  // Listens on "host:port", port 0: any free one. UNAVAILABLE names what cannot be listened on.
  // `counts`, if any, outlives this.
  static absl::StatusOr<std::unique_ptr<Acceptor>> Listen(const std::string& listen,
                                                          const ConnectionLimits& limits,
                                                          ConnectionCounts* counts);
  ~Acceptor();

  int port() const { return port_; }

  // Makes the server that the builder builds take its connections from here, by `tls`. Once.
  void AddTo(grpc::ServerBuilder* builder, const TlsFiles& tls);
  // The server has started, and outlives this or its Stop: connections are taken from now on.
  void Start();
  // None is taken any more. Those that are open stay.
  void Stop();

  // Whether the loop that takes connections comes round within `patience`. Any thread may ask.
  bool Answers(absl::Duration patience);

 private:
  struct Peer {
    int open = 0;
    double may_open = 0;  // at once
    absl::Time since;     // may_open was true
  };

  // A connection that gRPC has. When it has closed it, the descriptor is none or another file.
  struct Connection {
    ino_t inode;
    std::string peer;
    absl::Time since;
  };

  Acceptor(const ConnectionLimits& limits, ConnectionCounts* counts);

  void Run();
  void AcceptSome(int listener);
  void Take(int listener, UniqueFd connection, const sockaddr& address);
  bool HasRoom(const Peer& peer) const;
  void Refill(Peer& peer) const;
  void OnAcceptError(int listener, int error);
  void Forget(std::unordered_map<int, Connection>::iterator connection);
  void Sweep();
  void CountHandshakes();

  const ConnectionLimits limits_;
  ConnectionCounts own_counts_;
  ConnectionCounts& counts_;
  int connections_max_ = 0;
  int port_ = 0;
  std::vector<UniqueFd> listeners_;
  UniqueFd wake_;   // readable: the thread is to answer, or to end
  UniqueFd spare_;  // given up for a moment to take a connection off the queue, and close it
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> server_;
  std::mutex mutex_;  // of the next three
  std::condition_variable answered_;
  uint64_t asked_ = 0;
  uint64_t rounds_ = 0;  // the last question that was answered
  std::atomic<bool> stopping_ = false;
  // The thread's own.
  std::unordered_map<int, Connection> connections_;  // by descriptor
  std::unordered_map<std::string, Peer> peers_;
  absl::Time swept_ = absl::InfinitePast();
  std::shared_ptr<const std::atomic<uint64_t>> handshakes_;  // that were done; null without TLS
  uint64_t handed_ = 0;                                      // connections, to the server
  uint64_t handshakes_failed_ = 0;
  std::thread thread_;
};

}  // namespace annulus
