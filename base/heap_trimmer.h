// Calls GiveBackIdleMemory now and then. Else what is kept is what was ever needed at once, and
// each heap grows a little for as long as a process runs, since what lives long lies among what
// does not. Thread-safe.
#pragma once

#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace annulus {

class HeapTrimmer {
 public:
  // The pages come back in well under 1% of the time if they are asked for this rarely.
  explicit HeapTrimmer(absl::Duration period = absl::Seconds(30));
  ~HeapTrimmer();
  HeapTrimmer(const HeapTrimmer&) = delete;
  HeapTrimmer& operator=(const HeapTrimmer&) = delete;

 private:
  absl::Notification stop_;
  std::thread thread_;
};

}  // namespace annulus
