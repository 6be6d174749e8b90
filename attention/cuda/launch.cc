#include "attention/cuda/launch.h"

#include "absl/strings/str_cat.h"
#include "attention/cuda/kernels.h"
#include "base/status.h"

namespace annulus::cuda {

absl::Status LaunchAll(const WorkList& list, const Upload& upload, cudaStream_t stream) {
  ANNULUS_RETURN_IF_ERROR(
      StatusOf(LaunchMeasure(upload.work(), static_cast<int>(list.key_runs().size()),
                             list.key_heads_max(), stream),
               "the kernel that measures keys"));
  for (const Launch& launch : list.launches()) {
    ANNULUS_RETURN_IF_ERROR(StartLaunch(upload.work(), launch, stream));
  }
  const auto splits = static_cast<int>(list.split_tiles().size());
  return StatusOf(LaunchMerge(upload.work(), upload.split_tiles(), splits, list.split_rows_max(),
                              list.split_dim_max(), stream),
                  absl::StrCat("the merge kernel, ", splits, " tiles"));
}

}  // namespace annulus::cuda
