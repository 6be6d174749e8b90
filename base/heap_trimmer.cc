#include "base/heap_trimmer.h"

#include <malloc.h>

namespace annulus {

HeapTrimmer::HeapTrimmer(absl::Duration period) {
  thread_ = std::thread([this, period] {
    while (!stop_.WaitForNotificationWithTimeout(period)) malloc_trim(0);
  });
}

HeapTrimmer::~HeapTrimmer() {
  stop_.Notify();
  thread_.join();
}

}  // namespace annulus
