#include "runtime/coordinator/call_work.h"

namespace annulus {

absl::StatusOr<PreparedWork> CallWork::Prepare(const action::Admit&) {
  return absl::InternalError("this call has no tensors to prepare");
}

absl::StatusOr<PreparedWork> CallWork::Prepare(const action::AdmitStep&) {
  return absl::InternalError("this call is no step");
}

}  // namespace annulus
