// Decode steps of a whole service within this process, without a network: what a step over a GPU
// takes beside its kernels and beside a step over a CPU that has next to nothing to compute.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace annulus {

struct StepShape {
  int64_t tokens = 1 << 10;  // of each context
  int contexts = 1;          // of one call
  bool append = false;       // each step brings a token besides its query
  int heads = 32;
  int kv_heads = 8;
  int head_dim = 128;
};

// Microseconds of a call.
struct StepTimes {
  double p50_us = 0;
  double p99_us = 0;
};

// `backend`: as InProcessOptions.
absl::StatusOr<StepTimes> TimeSteps(const StepShape& shape, const std::string& backend, int rounds);

}  // namespace annulus
