#include "attention/backend.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "attention/cpu/cpu_backend.h"
#include "attention/reference/reference.h"
#ifdef ANNULUS_CUDA
#include "attention/cuda/cuda_backend.h"
#endif

namespace annulus {
namespace {

constexpr int kThreadsMax = 4096;

}  // namespace

bool BuiltWithCuda() {
#ifdef ANNULUS_CUDA
  return true;
#else
  return false;
#endif
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(absl::string_view name, int threads,
                                                     int place) {
  if (threads < 0 || threads > kThreadsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads: ", threads, "; expected 0 (one per core) to ", kThreadsMax));
  }
  if (name == "cpu" || name == "auto") return MakeCpuBackend(threads);
  if (name == "reference") return MakeReferenceBackend(threads);
#ifdef ANNULUS_CUDA
  if (name == "cuda") return MakeCudaBackend(place, "", threads);
  if (absl::ConsumePrefix(&name, "cuda:")) return MakeCudaBackend(place, name, threads);
#endif
  const absl::string_view known = BuiltWithCuda()
                                      ? "auto, cpu, cuda, reference"
                                      : "auto, cpu, reference (this program has no CUDA in it)";
  return absl::InvalidArgumentError(absl::StrCat("backend: '", absl::CHexEscape(name.substr(0, 40)),
                                                 "'; expected one of ", known));
}

}  // namespace annulus
