#include "sharding/cluster.h"

#include <algorithm>

namespace annulus {

bool Inside(const ClusterModel& cluster, int a, int b, int world) {
  if (cluster.workers_per_node >= world) return true;
  if (a == kCaller || b == kCaller) return false;
  return a / cluster.workers_per_node == b / cluster.workers_per_node;
}

double ComputeSeconds(const ClusterModel& cluster, const Problem& problem,
                      const ComputeLoad& load) {
  const double dims = problem.head_dim + problem.v_head_dim;
  const double stored_dims = problem.v_is_k_prefix ? problem.head_dim : dims;
  const double bytes = static_cast<double>(load.tokens_read) * stored_dims *
                       static_cast<double>(SizeOf(problem.dtype));
  return std::max(2.0 * static_cast<double>(load.work_pairs) * dims / cluster.flops,
                  bytes / cluster.read_bytes_per_s);
}

double LinkSeconds(const ClusterModel& cluster, bool inside, int64_t bytes, int64_t messages) {
  const double rate = inside ? cluster.inside_bytes_per_s : cluster.between_bytes_per_s;
  const double latency = inside ? cluster.inside_latency_s : cluster.between_latency_s;
  return static_cast<double>(bytes) / rate + static_cast<double>(messages) * latency;
}

}  // namespace annulus
