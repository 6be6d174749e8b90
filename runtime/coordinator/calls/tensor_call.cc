#include "runtime/coordinator/calls/tensor_call.h"

#include "base/status.h"

namespace annulus {

Stop StopOf(const CallContext& call, const Clock& clock) {
  return Stop([&call, &clock] {
    if (clock.Now() >= call.deadline) {
      return absl::DeadlineExceededError("the call's deadline passed");
    }
    if (call.cancelled && call.cancelled()) {
      return absl::CancelledError("the caller cancelled the call");
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<AppendResult> AppendResultOf(const action::Finish& finish) {
  const action::ItemEnd& end = finish.items.at(0);
  ANNULUS_RETURN_IF_ERROR(end.status);
  return AppendResult{end.epoch, end.tokens};
}

absl::StatusOr<PreparedCall> TensorCall::Prepare(const action::Admit&) {
  return absl::InternalError("this call has no tensors to prepare");
}

}  // namespace annulus
