// LineLimit: how often something is told to people that strangers can make happen at will: up to so
// many lines in a period, and then how many were left out. Not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/time/time.h"

namespace annulus {

class LineLimit {
 public:
  LineLimit(int lines_max, absl::Duration period) : lines_max_(lines_max), period_(period) {}

  // How many were left out since the last line, if this one is to be written; nullopt: it is left
  // out too.
  std::optional<int64_t> Admit(absl::Time now) {
    if (now - since_ >= period_ || now < since_) {
      since_ = now;
      lines_ = 0;
    }
    if (lines_ >= lines_max_) {
      ++left_out_;
      return std::nullopt;
    }
    ++lines_;
    return std::exchange(left_out_, 0);
  }

 private:
  const int lines_max_;
  const absl::Duration period_;
  absl::Time since_ = absl::InfinitePast();  // the period began
  int lines_ = 0;                            // in it
  int64_t left_out_ = 0;
};

}  // namespace annulus
