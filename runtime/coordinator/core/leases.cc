// Contexts that end by themselves.
//
// A context is used while a call on it is in flight, and whenever one begins or ends. Once it was
// not used for its spec's lease it is released. When KV is full, those go that are about to be
// released, and then, where limits say so, those that are marked evictable, the least recently used
// first. A context in use never goes.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/coordinator/core/contexts.h"

namespace annulus {
namespace {

// How often leases are looked at, at most: a look goes over all contexts.
constexpr absl::Duration kLookPeriod = absl::Milliseconds(100);

}  // namespace

bool Context::is_idle() const {
  return created && calls == 0 && moving != Moving::kSwitching;
}

absl::Time Context::expires() const {
  const double lease = map->spec.lease;
  return lease == 0 ? absl::InfiniteFuture() : used + absl::Seconds(lease);
}

void Contexts::Use(Context& context, int calls) {
  context.calls += calls;
  context.used = out_.now();
  leases_due_ = std::min(leases_due_, std::max(context.expires(), leases_looked_ + kLookPeriod));
}

void Contexts::NoteStandStill(absl::Duration length) {
  if (length == absl::ZeroDuration()) return;
  for (auto& [id, context] : contexts_) context.used += length;
}

void Contexts::EndLeases() {
  const absl::Time now = out_.now();
  if (now < leases_due_) return;
  leases_looked_ = now;
  leases_due_ = absl::InfiniteFuture();
  for (auto next = contexts_.begin(); next != contexts_.end();) {
    const Context& context = next++->second;
    if (now >= context.expires() && context.is_idle()) {
      EndUnused(context);
    } else {
      leases_due_ = std::min(leases_due_, std::max(context.expires(), now + kLookPeriod));
    }
  }
}

absl::Time Contexts::NextTimer() const {
  // Only a coordinator that is called often can tell that it stood still.
  const absl::Time look = leases_due_ == absl::InfiniteFuture()
                              ? absl::InfiniteFuture()
                              : std::min(leases_due_, out_.now() + heartbeat_timeout_ / 4);
  return std::min(absent_due_, look);
}

std::string Contexts::WhyOf(const Ended& ended) {
  if (ended.full == 0) {
    return absl::StrCat("its lease of ", ended.lease, " s passed without a call on it");
  }
  return absl::StrCat("KV of worker ", ended.full,
                      " was full, and it was the least recently used evictable context");
}

void Contexts::EndUnused(const Context& context, WorkerId full) {
  const ContextId id = context.map->context;
  Ended& ended = ended_[id % kEndedShownMax];
  ended = {id, context.owner(), context.map->spec.lease, full};
  ++(full != 0 ? ended_counts_.evicted : ended_counts_.expired);
  out_.Emit(
      action::ContextEnded{id, WhyOf(ended), context.kv_bytes_sum(), out_.now() - context.used});
  Release(id, 0);
}

absl::Status Contexts::WhyEnded(ContextId id, const Caller& caller) const {
  const Ended& ended = ended_[id % kEndedShownMax];
  if (id == 0 || ended.id != id || !MayKnow(caller, ended.owner)) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("context ", id, " was released: ", WhyOf(ended), "; create it again"));
}

Contexts::EndedCounts Contexts::CountEnded(const Caller& caller) const {
  if (caller.role == Role::kAdmin) return ended_counts_;
  EndedCounts counts;
  for (const Ended& ended : ended_) {
    if (ended.id == 0 || !MayKnow(caller, ended.owner)) continue;
    ++(ended.full != 0 ? counts.evicted : counts.expired);
  }
  return counts;
}

bool Contexts::MakeRoom(WorkerId id, int64_t bytes) {
  const Member& member = members_.at(id);
  const int64_t free =
      member.status.kv_bytes_limit - member.status.kv_bytes - member.kv_bytes_since;
  int64_t missing = bytes - std::max<int64_t>(0, free);
  if (missing <= 0) return false;  // it is not KV that was full
  std::vector<const Context*> expired, evictable;
  int64_t held = 0;
  for (const auto& [context_id, context] : contexts_) {
    const auto kv_bytes = context.kv_bytes.find(id);
    if (!context.is_idle() || kv_bytes == context.kv_bytes.end() || kv_bytes->second == 0) continue;
    const bool is_over = out_.now() >= context.expires();
    if (!is_over && !(limits_.evict && context.map->spec.evictable)) continue;
    (is_over ? expired : evictable).push_back(&context);
    held += kv_bytes->second;
  }
  if (held < missing) return false;  // nothing goes in vain
  std::stable_sort(evictable.begin(), evictable.end(),
                   [](const Context* a, const Context* b) { return a->used < b->used; });
  for (const Context* context : expired) {
    missing -= context->kv_bytes.at(id);
    EndUnused(*context);
  }
  for (const Context* context : evictable) {
    if (missing <= 0) break;
    missing -= context->kv_bytes.at(id);
    EndUnused(*context, id);
  }
  return true;
}

}  // namespace annulus
