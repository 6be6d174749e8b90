// The exchange among threads of one process: matched operations are copied from memory to memory
// by whichever side posts second. Thread-safe as exchange.h says; members may live in any threads.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "comm/exchange.h"

namespace annulus {

// What the members of one local exchange share. It lives as long as any of them.
class LocalExchangeGroup {
 public:
  virtual ~LocalExchangeGroup() = default;

  static std::shared_ptr<LocalExchangeGroup> Create(int world);

  // The exchange as `rank` sees it; to be called once for each rank.
  virtual std::unique_ptr<Exchange> Open(int rank) = 0;

  // Rank `rank` has died: the operations of others that need it fail with UNAVAILABLE, and so do
  // all of its own. Returns when its memory is not touched any more.
  virtual void FailRank(int rank, const absl::Status& why) = 0;
};

// All ranks of a new exchange.
std::vector<std::unique_ptr<Exchange>> MakeLocalExchanges(int world);

}  // namespace annulus
