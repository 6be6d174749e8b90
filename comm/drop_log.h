// DropLog: tells people of peers that were dropped for what they sent. A flood of them is one line
// now and then, with how many were left out. Not thread-safe.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/line_limit.h"
#include "base/log.h"

namespace annulus {

class DropLog {
 public:
  void Note(const absl::Status& why) {
    const std::optional<int64_t> left_out = limit_.Admit(absl::Now());
    if (!left_out.has_value()) return;
    Log(LogLevel::kWarning, "dropped a peer for what it sent",
        {{"why", why.ToString()}, {"since_last_line", *left_out + 1}});
  }

 private:
  LineLimit limit_{1, absl::Seconds(10)};
};

}  // namespace annulus
