#include "attention/cuda/launch.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus::cuda {
namespace {

absl::Status LaunchOne(const Work& work, const Launch& launch, cudaStream_t stream) {
  const auto [kernel, format, dim, first, count] = launch;
  switch (kernel) {
    case Kernel::kPanel:
      return StatusOf(LaunchPanel(work, format, dim, first, count, stream),
                      absl::StrCat("the panel kernel, ", count, " segments"));
    case Kernel::kStream:
      return StatusOf(LaunchStream(work, format, dim, first, count, stream),
                      absl::StrCat("the stream kernel, ", count, " lanes"));
    case Kernel::kSimple:
      return StatusOf(LaunchSimple(work, first, count, stream),
                      absl::StrCat("the simple kernel, ", count, " segments"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int> LoadAll() {
  ANNULUS_RETURN_IF_ERROR(StatusOf(LoadSimple(), "loading the simple kernel"));
  ANNULUS_RETURN_IF_ERROR(StatusOf(LoadMerge(), "loading the merge kernel"));
  int most = 0;
  for (const int dim : {64, 128, kHeadDimMax}) {
    cudaError_t error = LoadPanel(dim);
    if (error == cudaSuccess) error = LoadStream(dim);
    if (error == cudaErrorInvalidValue && most != 0) {  // too little shared memory
      cudaGetLastError();
      break;
    }
    ANNULUS_RETURN_IF_ERROR(StatusOf(error, absl::StrCat("loading kernels of head dim ", dim)));
    most = dim;
  }
  return most;
}

absl::Status LaunchAll(const WorkList& list, const Upload& upload, cudaStream_t stream) {
  for (const Launch& launch : list.launches()) {
    ANNULUS_RETURN_IF_ERROR(LaunchOne(upload.work(), launch, stream));
  }
  const auto splits = static_cast<int>(list.split_tiles().size());
  return StatusOf(LaunchMerge(upload.work(), upload.split_tiles(), splits, stream),
                  absl::StrCat("the merge kernel, ", splits, " tiles"));
}

}  // namespace annulus::cuda
