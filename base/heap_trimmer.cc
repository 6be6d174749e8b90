#include "base/heap_trimmer.h"

#include "base/memory.h"

namespace annulus {

HeapTrimmer::HeapTrimmer(absl::Duration period) {
  thread_ = std::thread([this, period] {
    while (!stop_.WaitForNotificationWithTimeout(period)) GiveBackIdleMemory();
  });
}

HeapTrimmer::~HeapTrimmer() {
  stop_.Notify();
  thread_.join();
}

}  // namespace annulus
