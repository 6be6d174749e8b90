// Fabric: one process's place in a transport. It gives the process its messenger and opens
// exchanges with others of the same transport; both share one address and one progress: an
// exchange's operations move while some thread polls the messenger (the process's communication
// thread, or a ProgressThread where there is no service around). Implementations:
// LocalNetwork::MakeFabric (comm/local), UcxFabric (comm/ucx).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/exchange.h"
#include "comm/messenger.h"

namespace annulus {

class Fabric {
 public:
  virtual ~Fabric() = default;

  // Lives as long as the fabric.
  virtual Messenger& messenger() = 0;

  // Opens rank `rank` of an exchange among the fabrics at `addresses` (those of their messengers,
  // by rank; addresses[rank] is our own). All members pass the same `channel`, a random number
  // that nobody else knows: whoever knows it is believed to be a member. It is never used twice.
  // Members may open at different times: what arrives early waits. Thread-safe.
  virtual absl::StatusOr<std::unique_ptr<Exchange>> OpenExchange(
      uint64_t channel, int rank, absl::Span<const std::string> addresses) = 0;
};

}  // namespace annulus
