// Clusters that --cluster knows by name. Links are those of the vendors' data sheets in one
// direction, latencies typical ones; what kernels attain is ours where it was measured
// (bench/results), else a share of the data sheet's peak as measured on the nearest machine. f32 on
// GPUs, which no matrix unit serves, is taken as under half of the data sheet's peak.
#include <iterator>

#include "absl/strings/str_cat.h"
#include "base/quoted.h"
#include "base/status.h"
#include "runtime/cli/files/cluster_file.h"

namespace annulus {
namespace {

struct KnownCluster {
  absl::string_view name;
  ClusterModel model;
};

constexpr double kGiga = 1e9;
constexpr double kTera = 1e12;
constexpr double kMicrosecond = 1e-6;

const KnownCluster kClusters[] = {
    // H100 SXM: causal 128k and decode 1M of gpu-h100.csv; NVLink 4 450 GB/s, of which NCCL reached
    // 363 on the same links between H200s; 400 Gbit/s of network a GPU.
    {"h100x8",
     {.workers_per_node = 8,
      .inside_bytes_per_s = 363 * kGiga,
      .inside_latency_s = 3 * kMicrosecond,
      .between_bytes_per_s = 50 * kGiga,
      .between_latency_s = 5 * kMicrosecond,
      .flops = 350 * kTera,
      .flops_f32 = 30 * kTera,
      .read_bytes_per_s = 2700 * kGiga,
      .launch_s = 5 * kMicrosecond}},
    // H200 SXM: the same of gpu-h200.csv.
    {"h200x8",
     {.workers_per_node = 8,
      .inside_bytes_per_s = 363 * kGiga,
      .inside_latency_s = 3 * kMicrosecond,
      .between_bytes_per_s = 50 * kGiga,
      .between_latency_s = 5 * kMicrosecond,
      .flops = 352 * kTera,
      .flops_f32 = 30 * kTera,
      .read_bytes_per_s = 3600 * kGiga,
      .launch_s = 5 * kMicrosecond}},
    // A100 SXM 80 GB, not measured: 0.6 of 312 TFLOP/s, for which these kernels' instructions were
    // made, 0.9 of 2,039 GB/s, 0.8 of NVLink 3's 300 GB/s, 200 Gbit/s of network a GPU.
    {"a100x8",
     {.workers_per_node = 8,
      .inside_bytes_per_s = 240 * kGiga,
      .inside_latency_s = 3 * kMicrosecond,
      .between_bytes_per_s = 25 * kGiga,
      .between_latency_s = 5 * kMicrosecond,
      .flops = 187 * kTera,
      .flops_f32 = 14 * kTera,
      .read_bytes_per_s = 1800 * kGiga,
      .launch_s = 5 * kMicrosecond}},
    // A server of 32 cores with AVX-512 and BF16 and 8 channels of DDR5-4800, one worker each: 16
    // times the two cores of kernels-epyc-2vcpu.csv, 0.8 of 307 GB/s, 100 Gbit/s of network.
    {"cpu-32",
     {.workers_per_node = 1,
      .inside_bytes_per_s = 20 * kGiga,
      .inside_latency_s = 20 * kMicrosecond,
      .between_bytes_per_s = 12.5 * kGiga,
      .between_latency_s = 50 * kMicrosecond,
      .flops = 5.4 * kTera,
      .flops_f32 = 2.9 * kTera,
      .read_bytes_per_s = 245 * kGiga,
      .launch_s = 10 * kMicrosecond}},
    // The same with 128 cores in two sockets, one worker for each.
    {"cpu-128",
     {.workers_per_node = 2,
      .inside_bytes_per_s = 40 * kGiga,
      .inside_latency_s = 20 * kMicrosecond,
      .between_bytes_per_s = 12.5 * kGiga,
      .between_latency_s = 50 * kMicrosecond,
      .flops = 10.8 * kTera,
      .flops_f32 = 5.8 * kTera,
      .read_bytes_per_s = 245 * kGiga,
      .launch_s = 10 * kMicrosecond}},
};

}  // namespace

std::string KnownClusters() {
  std::string names;
  for (const KnownCluster& known : kClusters) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", known.name);
  }
  return names;
}

absl::StatusOr<ClusterFile> FindCluster(const std::string& name) {
  for (const KnownCluster& known : kClusters) {
    if (known.name != name) continue;
    ClusterFile cluster;
    cluster.model = known.model;
    cluster.machine = name;
    return cluster;
  }
  absl::StatusOr<ClusterFile> file = ReadCluster(name);
  if (file.ok() || name.find_first_of("/.") != std::string::npos) return file;
  return absl::InvalidArgumentError(
      absl::StrCat(file.status().message(), ", or one of ", KnownClusters()));
}

}  // namespace annulus
