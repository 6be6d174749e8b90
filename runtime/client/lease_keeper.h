// LeaseKeeper: renews the leases of the contexts that a client made, each every third of its lease,
// for as long as it lives. Thread-safe; it has a thread of its own from the first lease on.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "annulus/cancel_token.h"
#include "annulus/types.h"

namespace annulus {

class LeaseKeeper {
 public:
  // Of kRenewedMax contexts at most, by a time, or until cancelled.
  using Renew = std::function<std::vector<absl::Status>(
      absl::Span<const ContextId> contexts, absl::Time deadline, const CancelToken& cancel)>;

  explicit LeaseKeeper(Renew renew) : renew_(std::move(renew)) {}
  ~LeaseKeeper();  // cancels a renewal under way

  // lease: as ContextSpec's; 0: there is nothing to renew.
  void Add(ContextId context, double lease);
  void Remove(ContextId context);

 private:
  struct Lease {
    absl::Duration period;
    absl::Time due;
  };

  void Run();
  std::vector<ContextId> TakeDue(absl::Time now);
  void Note(absl::Span<const ContextId> contexts, absl::Span<const absl::Status> renewed);

  const Renew renew_;
  const CancelToken cancel_ = CancelToken::New();
  std::mutex mutex_;  // all that follows
  std::condition_variable changed_;
  std::map<ContextId, Lease> leases_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace annulus
