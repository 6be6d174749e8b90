// What every backend asks of its arguments, in one place, so that all refuse the same calls in the
// same words. Pure functions.
#pragma once

#include <atomic>

#include "absl/status/status.h"
#include "attention/backend.h"

namespace annulus {

// INVALID_ARGUMENT, naming the field, its value and what was expected, unless the shapes agree
// with one another and lie within `capabilities`.
absl::Status CheckAttendArgs(const AttendArgs& args, const BackendCapabilities& capabilities);

// INVALID_ARGUMENT unless it is 0 or a number that scores can be scaled by in f32 (backends count
// in units of log2, and so take a multiple of it).
absl::Status CheckScale(float scale);

// The INTERNAL error of a block that the pattern reads and the shard does not hold.
absl::Status MissingPage(int kv_head, int64_t block);

absl::Status AttendCancelled();

// Whether the caller has given the problem up: once true, always true.
inline bool IsCancelled(const AttendArgs& args) {
  return args.cancel != nullptr && args.cancel->load(std::memory_order_relaxed);
}

}  // namespace annulus
