#include "runtime/coordinator/calls/tensor_call.h"

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

absl::StatusOr<PreparedCall> TensorCall::Prepare(const action::Admit&) {
  return absl::InternalError("this call has no tensors to prepare");
}

}  // namespace annulus
