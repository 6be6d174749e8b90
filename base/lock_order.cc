#include "base/lock_order.h"

#include "absl/synchronization/mutex.h"

namespace annulus {

void ForgetLockOrder() {
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
}

}  // namespace annulus
