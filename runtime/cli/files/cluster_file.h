// --cluster: the machines a planner weighs for, as one JSON object. Every field may be left out
// (then it is as ClusterModel says):
//   nodes, workers_per_node                 counts
//   inside_gb_per_s, inside_us              a link between workers of one node, 10^9 bytes/s and µs
//   between_gb_per_s, between_us            between nodes
//   flops, flops_f32                        of one worker: attained FLOP/s on f16 and bf16, on f32
//   read_gb_per_s, launch_us                of one worker: memory, what any launch costs at least
//   shared                                  true: the workers of a node share these rates
//   machine                                 text: what was measured
//   others_share                            of its cores' time, that others had meanwhile; absent:
//                                           not known
// flops_f32 is flops where it is left out. Pure functions but for the file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sharding/planner.h"

namespace annulus {

struct ClusterFile {
  ClusterModel model;
  int64_t workers_max = INT32_MAX;  // nodes · workers_per_node
  bool shared = false;
  std::string machine;
  std::optional<double> others_share;
};

// INVALID_ARGUMENT names the field, its value and what was expected.
absl::StatusOr<ClusterFile> ParseCluster(absl::string_view json);
absl::StatusOr<ClusterFile> ReadCluster(const std::string& path);

// A cluster that the program knows by name ("h100x8": as many nodes of eight H100s as are asked
// for), else the file at `name`, whose path may be told apart by a slash: "./h100x8".
// INVALID_ARGUMENT also names the known ones where there is no such file.
absl::StatusOr<ClusterFile> FindCluster(const std::string& name);
// "h100x8, h200x8, …".
std::string KnownClusters();

// Each figure the better one of two measurements of a machine.
ClusterModel BestOf(const ClusterModel& a, const ClusterModel& b);

// What was measured, as ParseCluster reads it.
std::string ToJson(const ClusterFile& file);

// What each of `workers` workers has. INVALID_ARGUMENT where the cluster has fewer.
absl::StatusOr<ClusterModel> ModelFor(const ClusterFile& file, int workers);

}  // namespace annulus
