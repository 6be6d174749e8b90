#include "runtime/client/retry.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "annulus/retry_hint.h"
#include "runtime/client/cancel_watch.h"

namespace annulus {

absl::Status CheckRetryOptions(const RetryOptions& options) {
  if (options.attempts_max < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("retry.attempts_max: ", options.attempts_max, "; expected 1 or more"));
  }
  if (options.budget < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("retry.budget: ", options.budget, "; expected 0 or more"));
  }
  if (options.backoff_min <= absl::ZeroDuration() || options.backoff_max < options.backoff_min) {
    return absl::InvalidArgumentError(absl::StrCat(
        "retry.backoff_min: ", absl::FormatDuration(options.backoff_min), " and backoff_max ",
        absl::FormatDuration(options.backoff_max), "; expected 0 < backoff_min <= backoff_max"));
  }
  return absl::OkStatus();
}

RetryBudget::RetryBudget(const RetryOptions& options, uint64_t seed)
    : options_(options), tenths_(int64_t{10} * options.budget), rng_(seed) {}

void RetryBudget::Earn() {
  const std::lock_guard<std::mutex> lock(mutex_);
  tenths_ = std::min(int64_t{10} * options_.budget, tenths_ + 1);
}

bool RetryBudget::Spend() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (tenths_ < 10) return false;
  tenths_ -= 10;
  return true;
}

absl::Duration RetryBudget::Backoff(int retry) {
  const absl::Duration whole =
      std::min(options_.backoff_max, options_.backoff_min * std::exp2(std::min(retry - 1, 30)));
  const std::lock_guard<std::mutex> lock(mutex_);
  return whole / 2 + whole / 2 * rng_.Uniform();
}

bool RetryLoop::Worthwhile(const absl::Status& status, Repeat repeat) {
  if (absl::IsUnavailable(status) && repeat == Repeat::kHarmless) return true;
  return RetryAfter(status).has_value() &&  // which the service gives what it has refused
         (absl::IsResourceExhausted(status) || absl::IsUnauthenticated(status) ||
          absl::IsUnavailable(status));
}

bool RetryLoop::Again(const absl::Status& status) {
  if (status.ok()) budget_->Earn();
  if (!Worthwhile(status, repeat_)) return false;
  if (retries_ + 1 >= budget_->options().attempts_max) return false;
  const absl::Duration wait =
      std::max(budget_->Backoff(retries_ + 1), RetryAfter(status).value_or(absl::ZeroDuration()));
  const absl::Time until = absl::Now() + wait;
  if (until >= deadline_ || !budget_->Spend()) return false;
  CancelWatch::Sleep(cancel_, until);
  ++retries_;
  return !cancel_.cancelled();
}

}  // namespace annulus
