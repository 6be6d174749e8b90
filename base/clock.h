// Time as an injected value: the service reads it only through a Clock, so that a simulation can
// run a cluster's hours in one thread. Thread-safe.
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace annulus {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;

  static const Clock& Real() {
    struct RealClock final : Clock {
      absl::Time Now() const override { return absl::Now(); }
    };
    static const RealClock clock;
    return clock;
  }
};

}  // namespace annulus
