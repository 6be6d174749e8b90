// What a session knows to be committed, also after its coordinator was away.
#include "absl/strings/str_cat.h"
#include "tests/runtime/sim_session.h"

namespace annulus::test {

// After a restart: what has become of the contexts. False if it is too early to know.
bool SimSession::FindOut() {
  if (!cluster_.coordinator_is_up()) return false;
  if (coordinators_ == cluster_.coordinators()) return true;
  const CoordinatorCore& core = cluster_.coordinator().core();
  for (const Context& context : contexts_) {
    if (absl::IsUnavailable(core.Describe(context.id).status())) return false;
  }
  for (Context& context : contexts_) {
    const auto info = core.Describe(context.id);
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
  const auto info = cluster_.coordinator().core().Describe(context.id);
  if (!info.ok() || context.doubtful) return;  // released
  if (info->tokens[0] != context.committed) {
    Fail(absl::StrCat("context ", context.id, " has ", info->tokens[0], " tokens, expected ",
                      context.committed));
  }
}

void SimSession::CheckAllThere() {
  for (const Context& context : contexts_) {
    const auto info = cluster_.coordinator().core().Describe(context.id);
    if (!info.ok() || info->state == "lost" || info->state == "recovering") {
      Fail(absl::StrCat("context ", context.id,
                        " is not there: ", info.ok() ? info->state : info.status().ToString()));
    } else if (info->tokens[0] != context.committed) {
      Fail(absl::StrCat("context ", context.id, " has ", info->tokens[0], " tokens, expected ",
                        context.committed));
    }
  }
}

}  // namespace annulus::test
