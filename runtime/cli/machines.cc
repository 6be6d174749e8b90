#include "runtime/cli/machines.h"

#include <filesystem>
#include <system_error>
#include <thread>

#include "absl/strings/str_cat.h"
#include "attention/backend.h"
#include "base/status.h"
#include "base/write_file.h"
#include "runtime/cli/cluster_file.h"
#include "runtime/engine/calibrate.h"

namespace annulus {
namespace {

constexpr char kMeasuredNow[] = "measured now";

// Where this machine's figures are kept, those with GPUs apart from those without; "" for nowhere.
std::string DefaultPath(const Environment& environment, const Backend& backend) {
  const char* file = backend.capabilities().gpus > 0 ? "machine-gpu.json" : "machine.json";
  for (const auto& [variable, folder] :
       {std::pair("XDG_CACHE_HOME", ""), std::pair("HOME", "/.cache")}) {
    const char* root = environment(variable);
    if (root != nullptr && *root == '/') {
      return absl::StrCat(root, folder, "/annulus/", file);
    }
  }
  return "";
}

// Tells machines apart that compute at different speeds.
std::string NameOf(const Backend& backend) {
  const BackendCapabilities& capabilities = backend.capabilities();
  return absl::StrCat(capabilities.name, " ", capabilities.detail, ", ",
                      std::thread::hardware_concurrency(), " cores");
}

absl::Status Keep(const ClusterFile& file, const std::string& path) {
  std::error_code ignored;  // a folder that cannot be made is named by the write below
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  return WriteFile(path, {ToJson(file)});
}

struct Kept {
  ClusterFile file;
  std::string source;
};

absl::StatusOr<Kept> ThisMachine(const std::optional<std::string>& asked,
                                 const std::string& backend_name, const Environment& environment) {
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend(backend_name, 0));
  const std::string path = asked.value_or(DefaultPath(environment, *backend));
  const std::string name = NameOf(*backend);
  std::error_code error;
  if (!path.empty() && std::filesystem::exists(path, error)) {
    ANNULUS_ASSIGN_OR_RETURN(ClusterFile file, ReadCluster(path));
    if (file.machine == name) return Kept{std::move(file), path};
  }
  Kept kept;
  kept.source = kMeasuredNow;
  kept.file.shared = backend->capabilities().gpus < 2;  // several GPUs are a worker's each
  kept.file.machine = name;
  ANNULUS_ASSIGN_OR_RETURN(kept.file.model, MeasureMachine(*backend));
  if (path.empty()) return kept;
  const absl::Status written = Keep(kept.file, path);
  if (written.ok()) {
    kept.source = path;
    // As every later run reads it: a rounded digit must not change a plan.
    ANNULUS_ASSIGN_OR_RETURN(kept.file, ReadCluster(path));
  } else if (asked.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("--calibration: ", written.message()));
  }
  return kept;
}

}  // namespace

void AddMachines(Options* options, MachineFlags* flags) {
  options->Add("cluster", "F", "the machines, a JSON file (this one)", SetText(&flags->cluster));
  options->Add(
      "calibration", "F",
      "where this machine's measured figures are kept (annulus/machine.json or machine-gpu.json "
      "in the user's cache folder)",
      SetText(&flags->calibration));
}

absl::StatusOr<Machines> MachinesFor(const MachineFlags& flags, const std::string& backend,
                                     int workers, const Environment& environment) {
  Kept kept;
  if (flags.cluster.has_value()) {
    kept.source = *flags.cluster;
    ANNULUS_ASSIGN_OR_RETURN(kept.file, ReadCluster(kept.source));
  } else {
    ANNULUS_ASSIGN_OR_RETURN(kept, ThisMachine(flags.calibration, backend, environment));
  }
  ANNULUS_ASSIGN_OR_RETURN(const ClusterModel model, ModelFor(kept.file, workers));
  std::string file = kept.source == kMeasuredNow ? "" : kept.source;
  return Machines{model, std::move(kept.source), std::move(file)};
}

}  // namespace annulus
