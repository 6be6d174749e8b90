// The exchanges under the contract's suite, rank by rank: threads of this process over what it can
// make (tests/comm/test_group.cc), or processes that mpirun has started (tests/mpi). The suite's
// bodies are those of one rank, so that they run in either.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "comm/exchange.h"
#include "comm/rendezvous.h"
#include "tests/catch.h"

namespace annulus {

class ExchangeGroup {
 public:
  virtual ~ExchangeGroup() = default;

  // Runs `body` as each rank; all must succeed. Catch's checks are for one thread: bodies return
  // statuses.
  virtual void Run(const std::function<absl::Status(Exchange&)>& body) = 0;

  // For bodies: returns when all ranks have come here.
  virtual void Barrier() = 0;
  // For bodies: another exchange among the same ranks. INVALID_ARGUMENT for a channel in use.
  virtual absl::StatusOr<std::unique_ptr<Exchange>> Open(int rank, uint64_t channel) = 0;
  // For bodies: one without a key, that the ranks share.
  virtual Rendezvous& rendezvous() = 0;
};

// What this program makes exchanges of; `with_channels`: only those that open several.
std::vector<std::string> ExchangeKinds(bool with_channels = false);

// Null where this program cannot have so many ranks, which it then says.
std::unique_ptr<ExchangeGroup> MakeExchangeGroup(const std::string& kind, int world);

inline absl::Status Expect(bool holds, absl::string_view what) {
  return holds ? absl::OkStatus() : absl::InternalError(what);
}

}  // namespace annulus
