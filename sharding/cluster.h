// ClusterModel: what the ranks of a plan compute and send with, and the terms of the cost model,
// one by one, for the planner and for whoever plays a plan round by round. Pure functions.
#pragma once

#include <cstdint>

#include "sharding/plan.h"
#include "sharding/work.h"

namespace annulus {

// A cluster of equal nodes with equal ranks. Links are counted per direction and rank.
struct ClusterModel {
  int workers_per_node = 1 << 20;    // ranks [0, n) on node 0, [n, 2n) on node 1, …
  double inside_bytes_per_s = 4e9;   // inside a node
  double inside_latency_s = 20e-6;   // of each message
  double between_bytes_per_s = 4e9;  // between nodes
  double between_latency_s = 50e-6;
  double flops = 50e9;             // per rank, attained by the kernels on f16 and bf16
  double flops_f32 = 50e9;         // and on f32
  double read_bytes_per_s = 10e9;  // per rank, memory
  double launch_s = 10e-6;         // of each launch, whatever it computes

  friend bool operator==(const ClusterModel&, const ClusterModel&) = default;
};

// The cluster as seen by each of `ranks` ranks that share what one would have alone: cores, memory
// and links, not latencies.
ClusterModel SharedBy(ClusterModel alone, int ranks);

// Whether two of `world` ranks are on one node. The caller (kCaller) is reached over the link
// between nodes unless all ranks are on one node.
bool Inside(const ClusterModel& cluster, int a, int b, int world);

// What a rank computes: 2·work_pairs·(head_dim + v_head_dim) / flops, and no less than the bytes of
// the pages it reads / read_bytes_per_s; then its partials, read and written once by each launch,
// / read_bytes_per_s; then launches · launch_s.
double ComputeSeconds(const ClusterModel& cluster, const Problem& problem, const ComputeLoad& load);

// Merging partials that arrived, of so many query rows × query heads: theirs are read, those here
// read and written.
double MergeSeconds(const ClusterModel& cluster, const Problem& problem, int64_t partial_rows);

// Messages of one rank over one link in one direction: bytes / bytes_per_s + messages · latency_s.
double LinkSeconds(const ClusterModel& cluster, bool inside, int64_t bytes, int64_t messages);

}  // namespace annulus
