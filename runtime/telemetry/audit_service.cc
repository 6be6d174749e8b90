#include "runtime/telemetry/audit_service.h"

#include <type_traits>

namespace annulus {
namespace {

bool IsDenied(const absl::Status& status) {
  return absl::IsNotFound(status) || absl::IsPermissionDenied(status);
}

// Calls that are told whatever comes of them.
template <typename Request>
constexpr bool kChanges =
    std::is_same_v<Request, ContextSpec> || std::is_same_v<Request, ForkRequest> ||
    std::is_same_v<Request, TruncateRequest> || std::is_same_v<Request, ReleaseRequest>;

// The context that was made, or that the call named; 0: none.
template <typename Request, typename Answer>
ContextId ContextOf(const Request& request, const absl::StatusOr<Answer>& answer) {
  if constexpr (std::is_same_v<Answer, ContextInfo>) {
    if (answer.ok()) return answer->id;
  }
  if constexpr (requires { request.context; }) return request.context;
  return 0;
}

}  // namespace

template <typename Request>
absl::StatusOr<CallSize> AuditService::CheckAny(const Request& header, const CallContext& call) {
  absl::StatusOr<CallSize> size = inner_->Check(header, call);
  if (IsDenied(size.status())) {
    log_->Tell(CallOf<Request>().name, call.caller, size.status().code(), header.context);
  }
  return size;
}

absl::StatusOr<CallSize> AuditService::Check(const AppendRequest& header, const CallContext& call) {
  return CheckAny(header, call);
}

absl::StatusOr<CallSize> AuditService::Check(const AttendRequest& header, const CallContext& call) {
  return CheckAny(header, call);
}

absl::StatusOr<AnyAnswer> AuditService::Answer(const AnyRequest& request, const CallContext& call) {
  return AnswerAny(request, [&](const auto& typed) {
    using Request = std::decay_t<decltype(typed)>;
    auto answer = inner_->Call(typed, call);
    const char* const name = CallOf<Request>().name;
    if (kChanges<Request> || IsDenied(answer.status())) {
      log_->Tell(name, call.caller, answer.status().code(), ContextOf(typed, answer));
    }
    if (!answer.ok()) return answer;
    // Calls on many contexts fail for each.
    if constexpr (requires { typed.steps; }) {
      for (size_t i = 0; i < answer->size(); ++i) {
        const absl::Status& status = (*answer)[i].status();
        if (IsDenied(status)) log_->Tell(name, call.caller, status.code(), typed.steps[i].context);
      }
    } else if constexpr (requires {
                           typed.contexts;
                           answer->failures;
                         }) {
      for (const auto& failure : answer->failures) {
        const auto index = static_cast<size_t>(failure.index);
        if (!IsDenied(failure.failure) || index >= typed.contexts.size()) continue;
        log_->Tell(name, call.caller, failure.failure.code(), typed.contexts[index]);
      }
    }
    return answer;
  });
}

}  // namespace annulus
