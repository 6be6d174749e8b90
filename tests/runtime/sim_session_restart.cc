// What a session knows to be committed, also after its coordinator was away.
#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/runtime/sim_session.h"

namespace annulus::test {

// After a restart: what has become of the contexts. False if it is too early to know.
bool SimSession::FindOut() {
  if (!cluster_.coordinator_is_up()) return false;
  if (coordinators_ == cluster_.coordinators()) return true;
  const CoordinatorCore& core = cluster_.coordinator().core();
  for (const Context& context : contexts_) {
    if (absl::IsUnavailable(core.Describe(context.id, caller_).status())) return false;
  }
  for (Context& context : contexts_) {
    const auto info = core.Describe(context.id, caller_);
    if (context.doubtful) continue;
    if (info.ok() && info->state != "lost") {
      FindOut(context, info->tokens[0]);
      ++tally_.recovered;
    } else {
      ++tally_.lost;
      context.doubtful = true;
    }
  }
  coordinators_ = cluster_.coordinators();
  return true;
}

// What was in flight may have been done or not, but wholly.
void SimSession::FindOut(Context& context, int64_t tokens) {
  if (tokens != context.committed &&
      (tokens != context.tried.end || context.tried.begin != context.committed)) {
    Fail(absl::StrCat("context ", context.id, " came back with ", tokens, " tokens, expected ",
                      context.committed));
  }
  context.committed = tokens;
}

// What was acknowledged is committed, and what failed is not.
void SimSession::Settle(Context& context) {
  if (context.went_well && context.tried.begin == context.committed) {
    context.committed = context.tried.end;
  }
  context.went_well = false;
  if (coordinators_ != cluster_.coordinators() || !cluster_.coordinator_is_up()) return;
  if (cluster_.coordinator_may_be_lost() && context.committed < context.tried.end) {
    context.doubtful = true;
  }
  const CoordinatorCore& core = cluster_.coordinator().core();
  const auto info = core.Describe(context.id, caller_);
  if (!info.ok() || context.doubtful) return;  // released
  CheckOwner(*info);
  if (info->tokens[0] != context.committed) {
    Fail(absl::StrCat("context ", context.id, " has ", info->tokens[0], " tokens, expected ",
                      context.committed));
  }
}

// Whoever is not its owner finds what an id that never was is found as, restarts or not.
void SimSession::CheckOwner(const ContextInfo& info) {
  if (info.spec.owner != caller_.tenant) {
    Fail(absl::StrCat("context ", info.id, " is \"", info.spec.owner, "\"'s, expected ",
                      caller_.tenant, "'s"));
  }
  const Caller stranger{"stranger", "stranger", Role::kTenant};
  const auto seen = [&](ContextId id) {
    const absl::Status status = cluster_.coordinator().core().Describe(id, stranger).status();
    return absl::StrReplaceAll(status.ToString(), {{absl::StrCat(id), "ID"}});
  };
  constexpr ContextId kFarOn = 500'000;  // half of a coordinator's ids: so many are never made
  if (seen(info.id) != seen(info.id + kFarOn)) {
    Fail(absl::StrCat("a stranger sees ", seen(info.id), ", expected ", seen(info.id + kFarOn)));
  }
}

void SimSession::CheckAllThere() {
  for (const Context& context : contexts_) {
    const auto info = cluster_.coordinator().core().Describe(context.id, caller_);
    if (!info.ok() || info->state == "lost" || info->state == "recovering") {
      Fail(absl::StrCat("context ", context.id,
                        " is not there: ", info.ok() ? info->state : info.status().ToString()));
    } else if (info->tokens[0] != context.committed) {
      Fail(absl::StrCat("context ", context.id, " has ", info->tokens[0], " tokens, expected ",
                        context.committed));
    }
  }
  CheckQuotas();
}

// What counts against the tenant's quotas is what it has.
void SimSession::CheckQuotas() {
  const CoordinatorCore& core = cluster_.coordinator().core();
  TenantStatus expected{caller_.tenant, std::ssize(contexts_)};
  expected.contexts += std::count_if(left_behind_.begin(), left_behind_.end(),
                                     [&](ContextId id) { return core.Describe(id, caller_).ok(); });
  std::set<ContextId> held;
  for (const auto& worker : cluster_.workers()) {
    if (!worker->ready()) continue;
    std::shared_ptr<const ByteCount> count;  // of all of its contexts there
    for (const ContextId id : worker->store().ContextIds()) {
      if ((*worker->store().Find(id))->spec.owner != caller_.tenant) continue;
      count = worker->store().OwnerCount(id);
      held.insert(id);
    }
    if (count != nullptr) expected.kv_bytes += count->bytes();
  }
  // One that is being moved is held twice, and counts once.
  const bool moves = std::ssize(held) > expected.contexts;
  const ClusterStatus status = core.Status(cluster_.now(), caller_);
  const TenantStatus known = status.tenants.empty() ? TenantStatus{} : status.tenants[0];
  if (known.contexts != expected.contexts || (!moves && known.kv_bytes != expected.kv_bytes)) {
    Fail(absl::StrCat("a tenant has ", known.contexts, " contexts and ", known.kv_bytes,
                      " bytes of KV, expected ", expected.contexts, " and ", expected.kv_bytes));
  }
}

}  // namespace annulus::test
