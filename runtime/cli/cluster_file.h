// --cluster: the machines a planner weighs for, as one JSON object of numbers. Every field may be
// left out (then it is this machine's, as ClusterModel says):
//   nodes, workers_per_node                 counts
//   inside_gb_per_s, inside_us              a link between workers of one node, 10^9 bytes/s and µs
//   between_gb_per_s, between_us            between nodes
//   flops, read_gb_per_s                    of one worker: attained FLOP/s, memory
// Pure function but for the file.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sharding/planner.h"

namespace annulus {

struct ClusterFile {
  ClusterModel model;
  int64_t workers_max = INT32_MAX;  // nodes · workers_per_node
};

// INVALID_ARGUMENT names the field, its value and what was expected.
absl::StatusOr<ClusterFile> ParseCluster(absl::string_view json);
absl::StatusOr<ClusterFile> ReadCluster(const std::string& path);

}  // namespace annulus
