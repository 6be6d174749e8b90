#include "runtime/cli/machines.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <system_error>
#include <thread>

#include "absl/strings/str_cat.h"
#include "attention/backend.h"
#include "base/cores_taken.h"
#include "base/quoted.h"
#include "base/status.h"
#include "base/write_file.h"
#include "runtime/cli/files/cluster_file.h"
#include "runtime/engine/calibrate.h"

namespace annulus {
namespace {

constexpr char kMeasuredNow[] = "measured now";

// Figures that were measured while others had more of the cores' time, or nobody knows how much,
// are measured again by a later run, after so long.
constexpr double kOthersShareMax = 0.25;
constexpr auto kBusyKeptFor = std::chrono::minutes(10);

bool ShouldMeasureAgain(const ClusterFile& file, const std::string& path) {
  if (file.others_share.value_or(1) <= kOthersShareMax) return false;
  std::error_code error;
  const auto written = std::filesystem::last_write_time(path, error);
  return !error && std::filesystem::file_time_type::clock::now() - written > kBusyKeptFor;
}

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

// Before two seconds are spent on what is to be kept there.
absl::Status MakeRoomFor(const std::string& path) {
  std::error_code ignored;  // a folder that cannot be made is named by the check
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  return CheckWritable(path);
}

struct Kept {
  ClusterFile file;
  std::string source;
};

absl::StatusOr<Kept> ThisMachine(const std::optional<std::string>& asked,
                                 const std::string& backend_name, const Environment& environment,
                                 std::ostream& notes) {
  ANNULUS_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend(backend_name, 0));
  const std::string path = asked.value_or(DefaultPath(environment, *backend));
  const std::string name = NameOf(*backend);
  std::string note;
  std::optional<ClusterFile> earlier;
  std::error_code error;
  if (!path.empty() && std::filesystem::exists(path, error)) {
    absl::StatusOr<ClusterFile> file = ReadCluster(path);
    if (file.ok() && file->machine == name) {
      if (!ShouldMeasureAgain(*file, path)) return Kept{*std::move(file), path};
      earlier = *file;
    }
    if (asked.has_value() && (!file.ok() || file->machine.empty())) {
      const std::string what = file.ok()
                                   ? absl::StrCat("file ", QuotedEnd(path), " names no machine")
                                   : std::string(file.status().message());
      return absl::InvalidArgumentError(
          absl::StrCat("--calibration: ", what,
                       "; expected what this option kept there, or no file: remove it "
                       "to measure anew"));
    }
    if (!file.ok()) note = absl::StrCat(file.status().message(), "; measured and kept anew");
  }
  absl::Status room = path.empty() ? absl::OkStatus() : MakeRoomFor(path);
  Kept kept;
  kept.source = kMeasuredNow;
  kept.file.shared = backend->capabilities().gpus < 2;  // several GPUs are a worker's each
  kept.file.machine = name;
  if (room.ok() || !asked.has_value()) {
    const CoresTaken others;
    ANNULUS_ASSIGN_OR_RETURN(kept.file.model, MeasureMachine(*backend));
    kept.file.others_share = others.Share();
    if (earlier.has_value()) {
      kept.file.model = BestOf(kept.file.model, earlier->model);
      kept.file.others_share = std::min(*kept.file.others_share, earlier->others_share.value_or(1));
    }
    if (path.empty()) return kept;
    if (room.ok()) room = WriteFile(path, {ToJson(kept.file)});
  }
  if (room.ok()) {
    kept.source = path;
    // As every later run reads it: a rounded digit must not change a plan.
    ANNULUS_ASSIGN_OR_RETURN(kept.file, ReadCluster(path));
  } else if (asked.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("--calibration: ", room.message()));
  } else {
    note = absl::StrCat(room.message(), "; this machine's figures are not kept");
  }
  if (!note.empty()) notes << "annulus: " << note << std::endl;
  return kept;
}

}  // namespace

void AddMachines(Options* options, MachineFlags* flags) {
  options->Add("cluster", "F",
               absl::StrCat("the machines, a JSON file or one of ", KnownClusters(), " (this one)"),
               SetText(&flags->cluster));
  options->Add(
      "calibration", "F",
      "where this machine's measured figures are kept (annulus/machine.json or machine-gpu.json "
      "in the user's cache folder)",
      SetText(&flags->calibration));
}

void AddFiles(const MachineFlags& flags, std::vector<NamedPath>* files) {
  files->push_back({"--cluster", flags.cluster});
  files->push_back({"--calibration", flags.calibration});
}

absl::StatusOr<Machines> MachinesFor(const MachineFlags& flags, const std::string& backend,
                                     int workers, const Environment& environment,
                                     std::ostream& notes) {
  Kept kept;
  if (flags.cluster.has_value()) {
    kept.source = *flags.cluster;
    ANNULUS_ASSIGN_OR_RETURN(kept.file, FindCluster(kept.source));
  } else {
    ANNULUS_ASSIGN_OR_RETURN(kept, ThisMachine(flags.calibration, backend, environment, notes));
  }
  ANNULUS_ASSIGN_OR_RETURN(const ClusterModel model, ModelFor(kept.file, workers));
  std::string file = kept.source == kMeasuredNow ? "" : kept.source;
  return Machines{model, std::move(kept.source), std::move(file)};
}

}  // namespace annulus
