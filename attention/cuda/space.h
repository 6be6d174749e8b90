// The memory of a GPU as a MemorySpace. Everything goes through one stream of its own, in order.
// Attention runs in others: what it reads must be done before, as it is when a call returns, or be
// waited for there (Follow).
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "absl/status/statusor.h"
#include "attention/memory_space.h"

namespace annulus::cuda {

class Space : public MemorySpace {
 public:
  // That of GPU `device`. Loads what it runs there.
  static absl::StatusOr<std::unique_ptr<Space>> Create(int device);

  // What is put into `stream` from now on comes after all that CopyRowsIn was asked to copy so far.
  virtual absl::Status Follow(cudaStream_t stream) = 0;

  // Why it failed for good; OK as long as it works.
  virtual absl::Status health() const = 0;
};

}  // namespace annulus::cuda
