// The CUDA backend: NVIDIA GPUs from compute capability 8.0 on, with the instructions that all of
// them have (mma.sync, cp.async). Tensors and pages may lie in host memory, and are then copied for
// the call, or in the GPU's. Attend may be called from several threads at once.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "attention/backend.h"

namespace annulus {

// Computes on GPU `place` modulo their number, as the CUDA runtime counts them. FAILED_PRECONDITION
// if there is none, or it is older.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int place = 0);

}  // namespace annulus
