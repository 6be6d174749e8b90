// When a call is tried again, and after how long: RetryOptions in action. The budget is the
// client's; a RetryLoop is one call's.
#pragma once

#include <mutex>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "annulus/client.h"
#include "base/rng.h"

namespace annulus {

// INVALID_ARGUMENT names the option that makes no sense.
absl::Status CheckRetryOptions(const RetryOptions& options);

// What a repetition of a call may do if the first was carried out after all.
enum class Repeat {
  kHarmless,  // reads, or calls whose keys tell the service
  kTwice,     // changes something again: only what was surely refused is tried again
};

// Thread-safe.
class RetryBudget {
 public:
  RetryBudget(const RetryOptions& options, uint64_t seed);

  void Earn();   // a call went well
  bool Spend();  // whether one more retry may be made
  // How long to wait before retry `retry` (from 1).
  absl::Duration Backoff(int retry);

  const RetryOptions& options() const { return options_; }

 private:
  const RetryOptions options_;
  std::mutex mutex_;
  int64_t tenths_;  // of retries left; under mutex_
  Rng rng_;         // under mutex_
};

class RetryLoop {
 public:
  RetryLoop(RetryBudget* budget, Repeat repeat, absl::Time deadline, CancelToken cancel)
      : budget_(budget), repeat_(repeat), deadline_(deadline), cancel_(std::move(cancel)) {}

  // Whether a status is one that a call is tried again for at all.
  static bool Worthwhile(const absl::Status& status, Repeat repeat);

  // Whether the call is to be tried again after this status; true only after the wait for it.
  bool Again(const absl::Status& status);

 private:
  RetryBudget* const budget_;
  const Repeat repeat_;
  const absl::Time deadline_;
  const CancelToken cancel_;
  int retries_ = 0;
};

}  // namespace annulus
