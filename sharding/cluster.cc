#include "sharding/cluster.h"

#include <algorithm>

namespace annulus {
namespace {

double PartialBytes(const Problem& problem, int64_t partial_rows) {
  return static_cast<double>(partial_rows) * (problem.v_head_dim + 1) * sizeof(float);
}

}  // namespace

bool Inside(const ClusterModel& cluster, int a, int b, int world) {
  if (cluster.workers_per_node >= world) return true;
  if (a == kCaller || b == kCaller) return false;
  return a / cluster.workers_per_node == b / cluster.workers_per_node;
}

ClusterModel SharedBy(ClusterModel alone, int ranks) {
  for (double* rate : {&alone.flops, &alone.flops_f32, &alone.read_bytes_per_s,
                       &alone.inside_bytes_per_s, &alone.between_bytes_per_s}) {
    *rate /= ranks;
  }
  return alone;
}

double ComputeSeconds(const ClusterModel& cluster, const Problem& problem,
                      const ComputeLoad& load) {
  const double dims = problem.head_dim + problem.v_head_dim;
  const double stored_dims = problem.v_is_k_prefix ? problem.head_dim : dims;
  const double bytes = static_cast<double>(load.tokens_read) * stored_dims *
                       static_cast<double>(SizeOf(problem.dtype));
  const double flops = problem.dtype == DType::kF32 ? cluster.flops_f32 : cluster.flops;
  const double attend_s = std::max(2.0 * static_cast<double>(load.work_pairs) * dims / flops,
                                   bytes / cluster.read_bytes_per_s);
  const double partials_s =
      2.0 * PartialBytes(problem, load.partial_rows) / cluster.read_bytes_per_s;
  return attend_s + partials_s + load.launches * cluster.launch_s;
}

double MergeSeconds(const ClusterModel& cluster, const Problem& problem, int64_t partial_rows) {
  return 3.0 * PartialBytes(problem, partial_rows) / cluster.read_bytes_per_s;
}

double LinkSeconds(const ClusterModel& cluster, bool inside, int64_t bytes, int64_t messages) {
  const double rate = inside ? cluster.inside_bytes_per_s : cluster.between_bytes_per_s;
  const double latency = inside ? cluster.inside_latency_s : cluster.between_latency_s;
  return static_cast<double>(bytes) / rate + static_cast<double>(messages) * latency;
}

}  // namespace annulus
