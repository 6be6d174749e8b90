// What the memory that the demo's KV lies in can do, measured between the decode steps: a plain
// read of host memory, or copies within a GPU's. Not thread-safe.
#pragma once

#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "attention/backend.h"
#include "attention/cpu/machine_peaks.h"
#include "attention/memory_space.h"

namespace annulus {

class BandwidthProbe {
 public:
  // Over `bytes` of the memory that `backend` computes in. It outlives this. Errors are those of
  // its memory.
  static absl::StatusOr<BandwidthProbe> Create(Backend& backend, size_t bytes);

  // Bytes/s now: read, or, on a GPU, read and written.
  absl::StatusOr<double> Measure();

 private:
  std::unique_ptr<ReadProbe> host_;  // or:
  MemorySpace* space_ = nullptr;
  Buffer from_, to_;
};

// How many GPUs `workers` workers compute on together; 0 where they compute in host memory.
int GpusOf(Backend& backend, int workers);

}  // namespace annulus
