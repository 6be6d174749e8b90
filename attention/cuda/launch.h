// Runs what was uploaded: the one way from a work list to kernels, for the backend and for whoever
// times it.
#pragma once

#include "absl/status/status.h"
#include "attention/cuda/upload.h"
#include "attention/cuda/work_list.h"

namespace annulus::cuda {

// All kernels of the list, in the stream's order; does not wait.
absl::Status LaunchAll(const WorkList& list, const Upload& upload, cudaStream_t stream);

}  // namespace annulus::cuda
