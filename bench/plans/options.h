// What `annulus_bench` is asked for. Pure but for the environment and --config's file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/cli/machines.h"
#include "runtime/cli/options/options.h"
#include "runtime/cli/problem.h"

namespace annulus {

struct BenchFlags {
  std::string transport = "mpi";
  std::string ucx_transports = "shm,tcp";
  std::vector<std::optional<PlanKind>> plans = {std::nullopt};  // nullopt: the planner's choice
  ProblemFlags problem;                                         // but for workers
  std::string backend = "auto";
  int threads = 0;  // 0: this rank's share of the cores
  int repeat = 5;
  int64_t seed = 1;
  bool check = false;
  int check_rows = 32;
  int single_s = 10;
  MachineFlags machines;
  std::string save_cluster;
  std::string csv;
  bool json = false;
};

// The help text if the arguments ask for it. INVALID_ARGUMENT: one line.
absl::StatusOr<std::optional<std::string>> ParseBenchFlags(const std::vector<std::string>& args,
                                                           const Environment& environment,
                                                           BenchFlags* flags);

}  // namespace annulus
