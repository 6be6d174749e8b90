#include "runtime/coordinator/calls/attend_call.h"

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/memory_space.h"
#include "base/log.h"
#include "base/status.h"
#include "runtime/coordinator/calls/index_item.h"
#include "runtime/engine/engine.h"

namespace annulus {
namespace {

std::string RequestIdOf(const AttendRequest& request) {
  static std::atomic<uint64_t> made_up = 0;
  return request.request_id.empty() ? absl::StrCat("attend-", ++made_up) : request.request_id;
}

}  // namespace

AttendCall::AttendCall(const AttendRequest& request, const CallContext& call, CallPlanner& planner,
                       const Clock& clock, Stop stop)
    : BatchCall(ItemsOf(request), call, planner, clock, std::move(stop)),
      request_(request),
      request_id_(RequestIdOf(request)),
      trace_id_(call.trace.trace_id),
      begin_(clock.Now()) {
  trace_ = request.trace;
}

void AttendCall::OnPhase(absl::string_view name, absl::Time begin) {
  if (!request_.trace) return;
  result_.trace.push_back({"coordinator", std::string(name), absl::ToUnixNanos(begin),
                           absl::ToUnixNanos(clock().Now())});
}

absl::StatusOr<PreparedCall> AttendCall::Prepare(const action::Admit& admit) {
  ANNULUS_ASSIGN_OR_RETURN(PreparedCall prepared, BatchCall::Prepare(admit));
  if (planned(0) == nullptr) return prepared;  // it is refused
  const Plan& plan = planned(0)->plan;
  AttendStats& stats = result_.stats;
  // One rank each: an item's receivers are the call's workers.
  for (const WorkerId worker : admit.workers) stats.workers.push_back({.worker = worker});
  for (const WorkerLoad& load : planned(0)->cost.workers) {
    ShareOf(load.worker).work_pairs = load.work_pairs;
  }
  for (const ShareMessage& to : prepared.messages) {
    stats.bytes_moved += static_cast<int64_t>(to.message.payload.size());  // queries
  }
  stats.plan = std::string(Name(plan.kind()));
  stats.visited_pairs = planned(0)->size.visited_pairs;
  stats.work_pairs = planned(0)->size.work_pairs;
  stats.planned_bytes = plan.BytesTotal();
  if (chooses(0)) {
    stats.planned_bytes =
        stats.bytes_moved + static_cast<int64_t>(PartialBytes(request_.q.tokens, request_.q.heads,
                                                              admit.items[0].map->spec.v_head_dim));
  }
  return prepared;
}

absl::Status AttendCall::OnAnswer(ShareAnswer answer) {
  if (selects(0)) return BatchCall::OnAnswer(std::move(answer));
  const absl::Time begin = clock().Now();
  WorkerShare& share = ShareOf(answer.rank);
  wire::WorkItemDone& done = answer.done.items.at(0);
  share.bytes_sent = done.bytes_sent;
  share.bytes_received = done.bytes_received;
  result_.stats.bytes_moved += done.bytes_sent;
  if (done.counted) {  // by one rank, which chose: it was planned by keys that stood for these
    result_.stats.visited_pairs = done.visited_pairs;
    result_.stats.work_pairs = share.work_pairs = done.work_pairs;
  }
  for (TraceSpan& span : done.spans) {
    span.process = absl::StrCat("worker ", share.worker);
    result_.trace.push_back(std::move(span));
  }
  ANNULUS_RETURN_IF_ERROR(BatchCall::OnAnswer(std::move(answer)));
  OnPhase(absl::StrCat("merge worker ", share.worker), begin);
  return absl::OkStatus();
}

absl::StatusOr<AttendResult> AttendCall::TakeResult(
    const absl::StatusOr<action::Finish>& finish) && {
  const absl::Time begin = clock().Now();
  absl::StatusOr<StepResult> answer =
      finish.ok() ? BatchCall::TakeResult(0, *finish) : finish.status();
  OnPhase("finalise", begin);
  OnPhase(absl::StrCat("attend ", request_id_), begin_);
  AttendStats& stats = result_.stats;
  stats.elapsed_s = absl::ToDoubleSeconds(clock().Now() - begin_);
  Log(LogLevel::kDebug, "attend",
      {{"request", request_id_},
       {"trace", trace_id_},
       {"context", request_.context},
       {"layer", request_.layer},
       {"code", absl::StatusCodeToString(answer.status().code())},
       {"plan", stats.plan},
       {"bytes", stats.bytes_moved},
       {"elapsed_s", stats.elapsed_s}});
  ANNULUS_RETURN_IF_ERROR(answer.status());
  result_.epoch = answer->epoch;
  result_.out = std::move(answer->out);
  result_.lse = std::move(answer->lse);
  return std::move(result_);
}

}  // namespace annulus
