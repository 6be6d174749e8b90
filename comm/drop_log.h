// DropLog: tells people of peers that were dropped for what they sent. A flood of them is one line
// now and then, with how many were left out. Not thread-safe.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/log.h"

namespace annulus {

class DropLog {
 public:
  void Note(const absl::Status& why) {
    ++dropped_;
    const absl::Time now = absl::Now();
    if (now < next_) return;
    next_ = now + kPeriod;
    Log(LogLevel::kWarning, "dropped a peer for what it sent",
        {{"why", why.ToString()}, {"since_last_line", dropped_}});
    dropped_ = 0;
  }

 private:
  static constexpr absl::Duration kPeriod = absl::Seconds(10);

  absl::Time next_ = absl::InfinitePast();
  uint64_t dropped_ = 0;
};

}  // namespace annulus
