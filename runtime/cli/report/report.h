// What the commands say: one JSON line for scripts, or a table for people. The names of JSON
// fields do not change. Pure functions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "annulus/types.h"
#include "attention/pattern.h"
#include "runtime/cli/explain_measure.h"
#include "runtime/cli/machines.h"
#include "runtime/coordinator/cluster_view.h"
#include "sharding/planner.h"

namespace annulus {

// Where the time of a run in this process went, beside what the cost model said of it.
struct AttendTimes {
  Machines machines;
  PlanCost predicted;
  double compute_s = 0;       // of the rank that computed longest
  double exposed_comm_s = 0;  // that it waited for transfers
};

struct AttendReport {
  std::string plan;
  std::string pattern;
  int64_t tokens = 0;  // of q
  int64_t q_start = 0;
  int64_t kv_tokens = 0;
  TokenRange keys;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  DType dtype = DType::kF32;
  std::string backend;
  int workers = 0;
  int64_t visited_pairs = 0;
  double elapsed_s = 0;  // median
  int64_t bytes_moved = 0;
  int64_t planned_bytes = 0;
  std::optional<AttendTimes> times;  // absent where a service computed
};
std::string ToJson(const AttendReport& report);
std::string ToText(const AttendReport& report);

struct ExplainReport {
  const Problem& problem;
  const Decision& decision;
  ProblemSize size;
  PatternCoverage coverage;  // over all heads and queries
  double coverage_last = 0;  // the share of the keys that some head shows the last query
  const Machines& machines;
  const std::vector<MeasuredPlan>& measured;  // of each candidate, or empty
  // The words whose chosen keys the ones nearest to each query stand for.
  const std::vector<std::string>& stand_ins;

  bool is_stand_in(const std::string& list) const {
    return std::count(stand_ins.begin(), stand_ins.end(), list) > 0;
  }
};
std::string ToJson(const ExplainReport& report);
std::string ToText(const ExplainReport& report);

// Of its longest layer, committed; tracks left out.
int64_t TokensOf(const ContextInfo& context);
// How many there are, those that the status does not tell of included.
int64_t ContextsOf(const ClusterStatus& status);
std::string ToJson(const ContextInfo& context);
std::string ToText(absl::Span<const ContextInfo> contexts);
std::string ToJson(const ClusterStatus& status);
// The same with what a coordinator's page has beside: what becomes of workers and contexts, and who
// holds them.
std::string ToJson(const ClusterStatus& status, const ClusterView& view);
std::string ToText(const ClusterStatus& status);

struct UpReport {
  std::string endpoint;
  int coordinator_pid = 0;
  std::vector<int> worker_pids;
};
std::string ToJson(const UpReport& report);

struct VersionReport {
  std::string version;
  std::string build_type;
  std::string simd;  // the target chosen on this machine
  std::vector<std::string> transports;
  bool cuda = false;
  std::string gpu;  // that it would compute on, or why there is none; "" without CUDA
};
std::string ToJson(const VersionReport& report);
std::string ToText(const VersionReport& report);

}  // namespace annulus
