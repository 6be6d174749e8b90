// UcxFabric: messages and exchanges over UCX's active messages (tcp, shared memory, or whatever UCX
// finds). For an isolated network only: UCX dies of garbage on its port below its active messages,
// and of an address that somebody makes up. What comes in active messages is checked (messenger.h
// and peer_limits.h say what a stranger may).
// A killed peer is noticed within milliseconds (over shared memory once its parent has reaped it),
// a hung one not at all: heartbeats are the owner's.
// Thread rule: as fabric.h, messenger.h and exchange.h say; exchanges move while some thread polls
// the messenger, and must be destroyed before the fabric.
//
// Shared memory takes some MB of /dev/shm (posix) or of System V segments for each process. Memory
// is not registered with any device: remote direct memory access is not used.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/fabric.h"
#include "comm/peer_limits.h"

namespace annulus {

struct UcxOptions {
  std::string transports = "tcp";  // as UCX_TLS: "tcp", "shm,tcp"; empty: what UCX finds best
  std::string net_devices;         // as UCX_NET_DEVICES, "eth0"; empty: all
  std::string tcp_port_range;      // as UCX_TCP_PORT_RANGE, "9000-9100"; empty: any
  size_t queue_bytes_max = size_t{256} << 20;          // unsent payload to one peer
  absl::Duration keepalive = absl::Milliseconds(100);  // how often UCX looks after idle peers
  PeerLimits peers;                                    // of the messenger
  absl::Duration spin = absl::Microseconds(20);  // how long an idle Wait spins before it sleeps
};

class UcxFabric final : public Fabric {
 public:
  // INVALID_ARGUMENT for an option that UCX refuses, UNAVAILABLE if no transport can be opened.
  static absl::StatusOr<std::unique_ptr<UcxFabric>> Create(const UcxOptions& options = {});
  ~UcxFabric() override;

  Messenger& messenger() override;
  absl::StatusOr<std::unique_ptr<Exchange>> OpenExchange(
      uint64_t channel, int rank, absl::Span<const std::string> addresses) override;

 private:
  class Parts;

  explicit UcxFabric(std::unique_ptr<Parts> parts);

  const std::unique_ptr<Parts> parts_;
};

}  // namespace annulus
