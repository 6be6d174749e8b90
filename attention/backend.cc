#include "attention/backend.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "attention/cpu/cpu_backend.h"
#include "attention/reference/reference.h"
#ifdef ANNULUS_CUDA
#include "attention/cuda/cuda_backend.h"
#endif

namespace annulus {

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(absl::string_view name, int threads) {
  if (threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads is ", threads, ", expected 0 (one per core) or more"));
  }
  if (name == "cpu" || name == "auto") return MakeCpuBackend(threads);
  if (name == "reference") return MakeReferenceBackend(threads);
  if (name == "cuda") {
#ifdef ANNULUS_CUDA
    return MakeCudaBackend();
#else
    return absl::FailedPreconditionError(
        "backend is 'cuda', but this program was built without a CUDA toolkit (preset cuda)");
#endif
  }
  return absl::InvalidArgumentError(absl::StrCat("backend is '",
                                                 absl::CHexEscape(name.substr(0, 40)),
                                                 "', expected one of auto, cpu, cuda, reference"));
}

}  // namespace annulus
