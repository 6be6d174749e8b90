#include "runtime/telemetry/trace_service.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace annulus {
namespace {

template <typename Request>
void AddAttributes(const Request& request, FinishedSpan* span) {
  if constexpr (requires { request.context; }) {
    span->attributes.emplace_back("annulus.context", absl::StrCat(request.context));
  }
  if constexpr (requires { request.layer; }) {
    span->attributes.emplace_back("annulus.layer", absl::StrCat(request.layer));
  }
  if constexpr (requires { request.request_id; }) {
    span->attributes.emplace_back("annulus.request", request.request_id);
  }
  if constexpr (requires { request.steps; }) {
    span->attributes.emplace_back("annulus.steps", absl::StrCat(request.steps.size()));
  }
}

// An Attend tells what it consisted of, whether or not its caller asks for that.
template <typename Request>
auto CallTold(Service& inner, const Request& request, const CallContext& call, FinishedSpan*) {
  return inner.Call(request, call);
}
absl::StatusOr<AttendResult> CallTold(Service& inner, const AttendRequest& request,
                                      const CallContext& call, FinishedSpan* span) {
  AttendRequest told = request;
  told.trace = true;
  absl::StatusOr<AttendResult> answer = inner.Call(told, call);
  if (!answer.ok()) return answer;
  // Workers tell of theirs themselves.
  std::copy_if(answer->trace.begin(), answer->trace.end(), std::back_inserter(span->parts),
               [](const TraceSpan& part) { return part.process == "coordinator"; });
  if (!request.trace) answer->trace.clear();
  return answer;
}

}  // namespace

absl::StatusOr<AnyAnswer> TraceService::Answer(const AnyRequest& request, const CallContext& call) {
  FinishedSpan span;
  span.parent = call.trace.given() ? call.trace : NewTrace();
  if (!span.parent.sampled) {
    return AnswerAny(request, [&](const auto& typed) { return inner_->Call(typed, call); });
  }
  span.span_id = NewSpanId();
  CallContext within = call;
  within.trace = span.parent;
  within.trace.span_id = span.span_id;
  return AnswerAny(request, [&](const auto& typed) {
    using Request = std::decay_t<decltype(typed)>;
    span.span.name = absl::StrCat("annulus.v1.Annulus/", CallOf<Request>().name);
    AddAttributes(typed, &span);
    span.span.begin_ns = absl::GetCurrentTimeNanos();
    auto answer = CallTold(*inner_, typed, within, &span);
    span.span.end_ns = absl::GetCurrentTimeNanos();
    const absl::StatusCode code = answer.ok() ? CodeOf(*answer) : answer.status().code();
    if (code != absl::StatusCode::kOk) span.failure = absl::StatusCodeToString(code);
    sink_(span);
    return answer;
  });
}

}  // namespace annulus
