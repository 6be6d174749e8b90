// Trace: the spans of an answer as a file that ui.perfetto.dev and chrome://tracing open (the JSON
// trace event format). One row group per process; spans of one process that overlap without
// nesting get rows of their own. Pure but for the file. Thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "annulus/types.h"

namespace annulus {

// Times start at the first span's begin and are microseconds. A span that ends before it begins
// (clocks of several machines) has length 0. Text that is not UTF-8 is replaced.
std::string TraceJson(const std::vector<TraceSpan>& spans);

// UNAVAILABLE names the path and what the system said.
absl::Status WriteTrace(const std::string& path, const std::vector<TraceSpan>& spans);

}  // namespace annulus
