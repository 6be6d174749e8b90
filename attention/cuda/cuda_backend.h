// The CUDA backend: NVIDIA GPUs from compute capability 8.0 on. Tensors and pages may lie in host
// memory, and are then copied for the call, or in the GPU's. Attend may be called from several
// threads at once.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/backend.h"

namespace annulus {

// Computes on GPU `place` modulo their number, as the CUDA runtime counts them. FAILED_PRECONDITION
// if there is none, or it is older. `family`: of kernels (kernels.h), empty for whichever is best.
// `threads`: of the host, for loops beside attention; 0: all cores but one, which steps that wait
// for the GPU find free.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int place = 0,
                                                         absl::string_view family = "",
                                                         int threads = 1);

}  // namespace annulus
