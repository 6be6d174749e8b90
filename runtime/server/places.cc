#include "runtime/server/places.h"

#include <grpcpp/server_context.h>

#include "absl/time/clock.h"
#include "annulus/retry_hint.h"
#include "base/shared_bound.h"

namespace annulus {
namespace {

// A client that has just opened a stream is about to send what comes first.
constexpr absl::Duration kIdleMin = absl::Milliseconds(100);

}  // namespace

absl::Status Places::Place::Take(grpc::ServerContext* context, const std::string& peer) {
  return Take(context, peer, Caller(), "", kNoQuota);
}

absl::Status Places::Place::Take(grpc::ServerContext* context, const std::string& peer,
                                 const Caller& caller, absl::string_view quota, int64_t quota_max) {
  Places& places = *places_;
  const std::lock_guard<std::mutex> lock(places.mutex_);
  if (places.draining_) return absl::UnavailableError("the server is shutting down");
  const int has = places.PlacesOf(peer);
  if (HasQuotas(caller) && has >= quota_max && !places.EndIdle(&peer)) {
    return WithRetryAfter(AboveQuota(quota, quota_max, caller.tenant, has, 1), kIdleMin);
  }
  const BoundUse use{places.places_max_, places.count_, places.PlacesOf(peer)};
  if (!use.HasRoom(1) && !places.EndIdle(use.HasShare(1) ? nullptr : &peer)) {
    return WithRetryAfter(AboveBound({.name = places.name_}, use, 1), kIdleMin);
  }
  entry_ = places.entries_.insert(places.entries_.end(), {context, peer, false, absl::Now(), true});
  ++places.peers_[peer];
  ++places.count_;
  taken_ = true;
  return absl::OkStatus();
}

bool Places::Place::SetBusy(bool busy) {
  const std::lock_guard<std::mutex> lock(places_->mutex_);
  if (!entry_->counts) return false;
  entry_->busy = busy;
  entry_->since = absl::Now();
  if (!busy) places_->entries_.splice(places_->entries_.end(), places_->entries_, entry_);
  if (places_->draining_ && !busy) entry_->context->TryCancel();
  return !places_->draining_;
}

Places::Place::~Place() {
  if (!taken_) return;
  const std::lock_guard<std::mutex> lock(places_->mutex_);
  places_->Uncount(*entry_);
  places_->entries_.erase(entry_);
}

void Places::Drain() {
  const std::lock_guard<std::mutex> lock(mutex_);
  draining_ = true;
  for (const Entry& entry : entries_) {
    if (!entry.busy) entry.context->TryCancel();
  }
}

int Places::PlacesOf(const std::string& peer) const {
  const auto found = peers_.find(peer);
  return found == peers_.end() ? 0 : found->second;
}

bool Places::EndIdle(const std::string* of_peer) {
  const absl::Time until = absl::Now() - kIdleMin;
  auto worst = entries_.end();
  int most = 0;
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->busy || !entry->counts) continue;
    if (entry->since > until) break;  // as all that follow
    if (of_peer != nullptr && entry->peer != *of_peer) continue;
    const int has = peers_.at(entry->peer);
    if (has <= most) continue;
    worst = entry;
    most = has;
    if (of_peer != nullptr) break;
  }
  if (worst == entries_.end()) return false;
  Uncount(*worst);
  worst->context->TryCancel();
  return true;
}

void Places::Uncount(Entry& entry) {
  if (!entry.counts) return;
  entry.counts = false;
  --count_;
  const auto peer = peers_.find(entry.peer);
  if (--peer->second == 0) peers_.erase(peer);
}

}  // namespace annulus
