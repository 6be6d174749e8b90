#include "runtime/server/fair_queue.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

namespace annulus {
namespace {

// Of a round. Small against what calls cost, so that no tenant gets far ahead; rounds in which
// nobody has enough are skipped at once.
constexpr double kQuantum = 1;
// The rate is that of the last periods, each of which counts half as much as the next.
constexpr absl::Duration kPeriod = absl::Milliseconds(100);

}  // namespace

size_t FairQueue::WaitingOf(const std::string& tenant) const {
  const auto own = by_tenant_.find(tenant);
  return own == by_tenant_.end() ? 0 : own->second->calls.size();
}

std::map<std::string, int64_t> FairQueue::WaitingByTenant() const {
  std::map<std::string, int64_t> waiting;
  for (const Turn& turn : turns_) waiting[turn.tenant] = std::ssize(turn.calls);
  return waiting;
}

// Of the tenant with most calls.
FairQueue::Turns::const_iterator FairQueue::Longest() const {
  return std::max_element(turns_.begin(), turns_.end(), [](const Turn& a, const Turn& b) {
    return a.calls.size() < b.calls.size();
  });
}

FairQueue::Verdict FairQueue::Judge(const Call& call, const std::string& tenant,
                                    absl::Time now) const {
  const size_t has = WaitingOf(tenant);
  if (has >= waiting_max_ - waiting_max_ / 2) return Verdict::kFull;
  if (now + ExpectedWait(tenant, call.cost) > call.latest) return Verdict::kTooLate;
  if (waiting_ < waiting_max_) return Verdict::kWaits;
  const auto most = Longest();
  const bool gives_way = most != turns_.end() && most->calls.size() > has + 1;
  return gives_way ? Verdict::kWaits : Verdict::kFull;
}

FairQueue::Verdict FairQueue::Add(Call* call, const std::string& tenant, absl::Time now,
                                  Call** pushed_out) {
  *pushed_out = nullptr;
  const Verdict verdict = Judge(*call, tenant, now);
  if (verdict != Verdict::kWaits) return verdict;
  if (waiting_ >= waiting_max_) {
    const auto most = by_tenant_.at(Longest()->tenant);
    *pushed_out = Take(most, std::prev(most->calls.end()));
  }
  if (waiting_ == 0) {
    period_ = now;
    served_ = 0;
  }
  auto turn = by_tenant_.find(tenant);
  if (turn == by_tenant_.end()) {
    turns_.emplace_back().tenant = tenant;
    turn = by_tenant_.emplace(tenant, std::prev(turns_.end())).first;
  }
  call->tenant_ = tenant;
  turn->second->calls.push_back(call);
  turn->second->cost += call->cost;
  ++waiting_;
  cost_ += call->cost;
  return Verdict::kWaits;
}

// A tenant that waits no more keeps nothing.
FairQueue::Call* FairQueue::Take(Turns::iterator turn, std::list<Call*>::iterator at) {
  Call* const call = *at;
  turn->calls.erase(at);
  turn->cost -= call->cost;
  --waiting_;
  cost_ -= call->cost;
  if (turn->calls.empty()) {
    by_tenant_.erase(turn->tenant);
    turns_.erase(turn);
  }
  if (waiting_ == 0) cost_ = 0;
  return call;
}

void FairQueue::Remove(Call* call) {
  const auto turn = by_tenant_.find(call->tenant_);
  if (turn == by_tenant_.end()) return;
  std::list<Call*>& calls = turn->second->calls;
  const auto at = std::find(calls.begin(), calls.end(), call);
  if (at != calls.end()) Take(turn->second, at);
}

FairQueue::Call* FairQueue::Next(May may) {
  for (const bool skipped : {false, true}) {
    for (size_t left = turns_.size(); left > 0; --left) {
      const auto turn = turns_.begin();
      if (may(*turn->calls.front())) {
        if (!turn->begun) turn->deficit += kQuantum;
        turn->begun = true;
        const double cost = turn->calls.front()->cost;
        if (cost <= turn->deficit) {
          turn->deficit -= cost;
          return Take(turn, turn->calls.begin());
        }
      }
      turn->begun = false;
      turns_.splice(turns_.end(), turns_, turn);
    }
    if (!skipped) SkipRounds(may);
  }
  return nullptr;
}

// Rounds in which nobody could spend what it has.
void FairQueue::SkipRounds(May may) {
  double missing = std::numeric_limits<double>::infinity();
  for (const Turn& turn : turns_) {
    if (may(*turn.calls.front()))
      missing = std::min(missing, turn.calls.front()->cost - turn.deficit);
  }
  const double rounds = std::ceil(missing / kQuantum) - 1;
  if (!std::isfinite(rounds) || rounds <= 0) return;
  for (Turn& turn : turns_) {
    if (may(*turn.calls.front())) turn.deficit += rounds * kQuantum;
  }
}

void FairQueue::NoteServed(double cost, absl::Time now) {
  if (waiting_ == 0) return;
  served_ += cost;
  const absl::Duration passed = now - period_;
  if (passed < kPeriod) return;
  const double rate = served_ / absl::ToDoubleSeconds(passed);
  rate_ = rate_ == 0 ? rate : (rate_ + rate) / 2;
  period_ = now;
  served_ = 0;
}

// Before it are those of its tenant, and as much of each other tenant at most.
absl::Duration FairQueue::ExpectedWait(const std::string& tenant, double cost) const {
  if (rate_ == 0 || waiting_ == 0) return absl::ZeroDuration();
  const auto own = by_tenant_.find(tenant);
  const bool waits = own != by_tenant_.end();
  const double of_tenant = cost + (waits ? own->second->cost : 0);
  const double tenants = static_cast<double>(turns_.size() + (waits ? 0 : 1));
  return absl::Seconds(std::min(cost + cost_, tenants * of_tenant) / rate_);
}

}  // namespace annulus
