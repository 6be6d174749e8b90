// Decode steps and prefills beside each other: what a step waits for, what a prefill pays, and how
// evenly prefills of different contexts share.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "annulus/client.h"
#include "bench/service/parts.h"

namespace annulus {

// bf16, as many KV heads as query heads.
struct BesideShape {
  int heads = 8;
  int dim = 64;
  int decode_contexts = 4;  // that one step serves
  int64_t decode_tokens = 512;
  int64_t prefill_tokens = 32 << 10;
  int64_t prefill_queries = 1024;
  int steps = 500;  // alone, and at least as many beside
  absl::Duration step_period = absl::Milliseconds(5);
};

struct BesideResult {
  Samples alone;           // steps
  Samples beside;          // steps beside prefills, one prefill after the other
  double steps_share = 0;  // of this process's cores, that steps take alone
  double prefill_alone_s = 0;
  double prefill_beside_s = 0;  // medians

  double p99_ratio() const { return beside.p99() / alone.p99(); }
  // Of the prefill's time to what it would have on the cores that steps leave.
  double prefill_ratio() const { return prefill_beside_s * (1 - steps_share) / prefill_alone_s; }
};

// The service must be idle. Its processor time is taken for this process's.
absl::StatusOr<BesideResult> MeasureBeside(Client& client, const BesideShape& shape);

// `contexts` callers prefill a context each, over and over for `time`: the queries answered of each
// as a part of the mean.
absl::StatusOr<std::vector<double>> MeasureShares(Client& client, const BesideShape& shape,
                                                  int contexts, absl::Duration time);

}  // namespace annulus
