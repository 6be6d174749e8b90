// The kernels of the CUDA backend, by family: the instructions that they are made of. `sm_80` runs
// on all GPUs since compute capability 8.0, `sm_90a` on Hopper alone. A table (kernels.cc) names
// each kernel once.
#pragma once

#include <iterator>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/cuda/work.h"

namespace annulus::cuda {

// How many thread blocks of each kernel run at once on a device; 0: it has not got this kernel.
class Slots {
 public:
  int Of(Kernel kernel, int dim) const { return of_[static_cast<int>(kernel)][Index(dim)]; }
  friend bool operator==(const Slots&, const Slots&) = default;
  void Set(Kernel kernel, int dim, int slots) { of_[static_cast<int>(kernel)][Index(dim)] = slots; }

 private:
  static size_t Index(int dim) {
    size_t i = 0;
    while (i + 1 < std::size(kDims) && kDims[i] < dim) ++i;
    return i;
  }

  int of_[kKernels][std::size(kDims)] = {};
};

struct LoadedKernels {
  Slots slots;
  std::string families;  // "sm_80, sm_90a"
};

// Loads into the current device all kernels that it runs; with `family` those of this one and
// portable ones for what it does not do. FAILED_PRECONDITION if the device does not run it,
// INVALID_ARGUMENT if there is no such family.
absl::StatusOr<LoadedKernels> LoadKernels(const cudaDeviceProp& device, absl::string_view family);

// Does not wait.
absl::Status StartLaunch(const Work& work, const Launch& launch, cudaStream_t stream);

}  // namespace annulus::cuda
