#include "attention/cuda/kernels.h"

#include <algorithm>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "attention/cuda/choose.h"
#include "base/cuda/handles.h"
#include "base/status.h"

namespace annulus::cuda {
namespace {

struct Family {
  const char* name;
  bool (*runs_on)(const cudaDeviceProp& device);
};

// The first one is portable.
constexpr Family kFamilies[] = {
    {"sm_80", [](const cudaDeviceProp& device) { return device.major >= 8; }},
    {"sm_90a", [](const cudaDeviceProp& device) { return device.major == 9 && device.minor == 0; }},
};

struct Entry {
  Kernel kernel;
  const Family& family;
  const char* name;
  LoadFunction* load;
  LaunchFunction* launch;
};

// By Kernel.
constexpr Entry kEntries[] = {
    {Kernel::kSimple, kFamilies[0], "simple", LoadSimple, LaunchSimple},
    {Kernel::kStream, kFamilies[0], "stream", LoadStream, LaunchStream},
    {Kernel::kPanel, kFamilies[0], "panel", LoadPanel, LaunchPanel},
    {Kernel::kWide, kFamilies[0], "wide", LoadWide, LaunchWide},
    {Kernel::kPanel90, kFamilies[1], "sm_90a panel", LoadPanel90, LaunchPanel90},
    {Kernel::kLatent90, kFamilies[1], "sm_90a latent", LoadLatent90, LaunchLatent90},
    {Kernel::kSingle90, kFamilies[1], "sm_90a single panel", LoadSingle90, LaunchSingle90},
};
static_assert(std::size(kEntries) == kKernels);

// The thread blocks of a kernel that one multiprocessor runs at once; 0 if it has no room for one,
// or the kernel is not for this head dim.
absl::StatusOr<int> LoadEntry(const Entry& entry, int dim) {
  int least = 0;
  for (const Format format : {Format::kBF16, Format::kF16}) {
    int thread_blocks = 0;
    const cudaError_t error = entry.load(format, dim, &thread_blocks);
    if (error == cudaErrorInvalidValue) {
      cudaGetLastError();
      return 0;
    }
    ANNULUS_RETURN_IF_ERROR(
        StatusOf(error, absl::StrCat("loading the ", entry.name, " kernel of head dim ", dim)));
    least = least == 0 ? thread_blocks : std::min(least, thread_blocks);
  }
  return least;
}

absl::Status CheckFamily(const cudaDeviceProp& device, absl::string_view name) {
  if (name.empty()) return absl::OkStatus();
  std::vector<absl::string_view> known;
  for (const Family& family : kFamilies) {
    known.push_back(family.name);
    if (name != family.name) continue;
    if (family.runs_on(device)) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(device.name, " does not run kernels of ", name));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "kernels: '", absl::CHexEscape(name), "'; expected one of ", absl::StrJoin(known, ", ")));
}

}  // namespace

absl::StatusOr<LoadedKernels> LoadKernels(const cudaDeviceProp& device, absl::string_view family) {
  ANNULUS_RETURN_IF_ERROR(CheckFamily(device, family));
  ANNULUS_RETURN_IF_ERROR(StatusOf(LoadMerge(), "loading the merge kernel"));
  ANNULUS_RETURN_IF_ERROR(StatusOf(LoadMeasure(), "loading the kernel that measures keys"));
  ANNULUS_RETURN_IF_ERROR(StatusOf(LoadChoose(), "loading the kernels that choose units"));
  ANNULUS_RETURN_IF_ERROR(StatusOf(LoadGather(), "loading the kernel of gathered rows"));
  LoadedKernels loaded;
  std::vector<absl::string_view> families;
  for (const Entry& entry : kEntries) {
    const bool wanted =
        &entry.family == &kFamilies[0] || family.empty() || family == entry.family.name;
    if (!wanted || !entry.family.runs_on(device)) continue;
    if (families.empty() || families.back() != entry.family.name) {
      families.push_back(entry.family.name);
    }
    for (const int dim : kDims) {
      ANNULUS_ASSIGN_OR_RETURN(const int thread_blocks, LoadEntry(entry, dim));
      loaded.slots.Set(entry.kernel, dim, thread_blocks * device.multiProcessorCount);
    }
  }
  loaded.families = absl::StrJoin(families, ", ");
  return loaded;
}

absl::Status StartLaunch(const Work& work, const Launch& launch, cudaStream_t stream) {
  const Entry& entry = kEntries[static_cast<int>(launch.kernel)];
  return StatusOf(entry.launch(work, launch, stream),
                  absl::StrCat("the ", entry.name, " kernel, ", launch.count, " parts"));
}

}  // namespace annulus::cuda
