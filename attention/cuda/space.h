// The memory of a GPU as a MemorySpace. Everything goes through one stream of its own, in order;
// attention runs in others, so that what it reads must be done before, as it is when a call
// returns.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "attention/memory_space.h"

namespace annulus::cuda {

class Space : public MemorySpace {
 public:
  // That of GPU `device`. Loads what it runs there.
  static absl::StatusOr<std::unique_ptr<Space>> Create(int device);

  // Why it failed for good; OK as long as it works.
  virtual absl::Status health() const = 0;
};

}  // namespace annulus::cuda
