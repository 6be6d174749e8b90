// What a stream does for the host: copies, and the wait for all that was asked of it. Thread-safe.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/cuda/handles.h"

namespace annulus::cuda {

inline absl::Status CopyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  if (bytes == 0) return absl::OkStatus();
  return StatusOf(cudaMemcpyAsync(to, from, bytes, kind, stream),
                  absl::StrCat("cudaMemcpyAsync(", bytes, " bytes)"));
}

inline absl::Status Wait(cudaStream_t stream) {
  return StatusOf(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

}  // namespace annulus::cuda
