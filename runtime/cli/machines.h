// Which machines a plan is weighed for: those of --cluster's file, or this one, whose figures are
// measured once (runtime/engine/calibrate.h) and kept in the file of --calibration, in the format
// of --cluster. Not thread-safe.
#pragma once

#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/write_file.h"
#include "runtime/cli/options/options.h"
#include "sharding/cluster.h"

namespace annulus {

struct MachineFlags {
  std::optional<std::string> cluster;
  std::optional<std::string> calibration;
};
void AddMachines(Options* options, MachineFlags* flags);

// The files that the flags name, as CheckOutputs takes them.
void AddFiles(const MachineFlags& flags, std::vector<NamedPath>* files);

struct Machines {
  ClusterModel model;  // as each worker sees it
  std::string source;  // the file that the figures are of, or "measured now"
  std::string file;    // that file; empty if measured now
};

// For `workers` workers that compute with `backend`, as MakeBackend takes it. Without --calibration
// figures are kept in the user's cache folder
// ($XDG_CACHE_HOME, else $HOME/.cache); without that, or where it cannot be written, they are
// measured anew each time. Figures kept by another kind of machine are measured again, and so are
// those of a damaged file in the cache folder. `notes` gets one line about a file that is damaged
// or cannot be written. INVALID_ARGUMENT names a file of the flags that is not as it should be.
absl::StatusOr<Machines> MachinesFor(const MachineFlags& flags, const std::string& backend,
                                     int workers, const Environment& environment,
                                     std::ostream& notes);

}  // namespace annulus
