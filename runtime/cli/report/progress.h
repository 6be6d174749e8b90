// A progress bar on a terminal; nothing where people are not watching. Not thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "runtime/cli/commands.h"

namespace annulus {

class Progress {
 public:
  // The console's stream outlives this.
  Progress(const Console& console, std::string label);
  ~Progress();  // leaves the bar's last state on a line of its own
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `done` of `all` bytes. Draws at most ten times a second.
  void Show(int64_t done, int64_t all);

 private:
  std::ostream* const stream_;  // null: nobody watches
  const std::string label_;
  const absl::Time begin_;
  absl::Time drawn_ = absl::InfinitePast();
};

}  // namespace annulus
