#include "runtime/client/lease_keeper.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "runtime/service/calls.h"

namespace annulus {
namespace {

// What is due so much of its period later is renewed too: one message for many.
constexpr double kTogether = 0.1;
// One that was not renewed is tried again after so much of its period.
constexpr double kRetryAfter = 0.25;

}  // namespace

LeaseKeeper::~LeaseKeeper() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  cancel_.Cancel();
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void LeaseKeeper::Add(ContextId context, double lease) {
  if (lease == 0) return;
  const absl::Duration period = absl::Seconds(lease) / 3;
  const std::lock_guard<std::mutex> lock(mutex_);
  leases_[context] = {period, absl::Now() + period};
  if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
  changed_.notify_all();
}

void LeaseKeeper::Remove(ContextId context) {
  const std::lock_guard<std::mutex> lock(mutex_);
  leases_.erase(context);
}

std::vector<ContextId> LeaseKeeper::TakeDue(absl::Time now) {
  std::vector<ContextId> due;
  for (auto& [context, lease] : leases_) {
    if (now < lease.due - lease.period * kTogether) continue;
    if (std::ssize(due) == kRenewedMax) break;
    lease.due = now + lease.period;
    due.push_back(context);
  }
  return due;
}

void LeaseKeeper::Note(absl::Span<const ContextId> contexts,
                       absl::Span<const absl::Status> renewed) {
  const absl::Time now = absl::Now();
  for (size_t i = 0; i < contexts.size(); ++i) {
    const auto lease = leases_.find(contexts[i]);
    if (renewed[i].ok() || lease == leases_.end()) continue;
    if (absl::IsNotFound(renewed[i])) {
      leases_.erase(lease);
    } else {
      lease->second.due = now + lease->second.period * kRetryAfter;
    }
  }
}

void LeaseKeeper::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    const absl::Time now = absl::Now();
    absl::Time next = now + absl::Hours(1);
    absl::Duration shortest = absl::InfiniteDuration();
    for (const auto& [context, lease] : leases_) {
      next = std::min(next, lease.due);
      shortest = std::min(shortest, lease.period);
    }
    if (now < next) {
      changed_.wait_for(lock, absl::ToChronoNanoseconds(next - now));
      continue;
    }
    const std::vector<ContextId> due = TakeDue(now);
    lock.unlock();
    const std::vector<absl::Status> renewed = renew_(due, now + shortest, cancel_);
    lock.lock();
    Note(due, renewed);
  }
}

}  // namespace annulus
