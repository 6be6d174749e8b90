// What the demo measured and found, and how it says so: a table for people, one JSON line for
// scripts. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/cli/demo/checks.h"

namespace annulus {

// One kind of request, made once or many times.
struct DemoPhase {
  std::string name;  // "chunk", "decode"
  std::string pattern;
  std::string plan;  // that ran
  int64_t requests = 0;
  int64_t queries = 0;  // over all requests
  Recall recall;
  int64_t rows_checked = 0;  // against the oracle, all heads of each
  double out_error = 0;      // the worst of them: ‖out − oracle‖ / ‖oracle‖
  double lse_error = 0;
  double elapsed_s = 0;  // all requests, at the client
  // KV that the pattern sees per request, over the coordinator's median time of a request. A chunk
  // reads its KV many times over, so that this figure is for decode only; 0 there.
  double kv_bytes_per_s = 0;
  // The median over the requests of that rate beside the bandwidth measured just before: a machine
  // whose memory others use too has no one bandwidth.
  double read_share = 0;
  int64_t bytes_moved = 0;
  int64_t planned_bytes = 0;
  std::vector<int64_t> work_pairs;  // by worker
};

struct DemoReport {
  int64_t tokens = 0;
  int workers = 0;
  std::string backend;
  uint64_t seed = 0;
  int64_t kv_bytes = 0;
  double upload_s = 0;
  int gpus = 0;  // that hold the KV; 0: host memory does
  // Of the memory that holds the KV, all GPUs together, the median of measurements between the
  // decode steps: a plain read of host memory, copies within a GPU's (bytes read and written).
  double read_bytes_per_s = 0;
  double covered = 0;           // share of the context that the KV heads together see under S2
  double plans_difference = 0;  // ‖a − b‖ / ‖b‖ of the chunk's answers over two plans
  std::vector<DemoPhase> phases;
  std::string block_map_path;
  std::string trace_path;
  double elapsed_s = 0;
  std::vector<std::string> failures;  // what is not as it must be, a phrase each
};

// Fills in `failures`: associations not found where they are visible or found where they are not,
// keys no head sees, errors and differences beyond what rounding explains, bytes other than
// planned.
void Judge(DemoReport* report);

std::string ToText(const DemoReport& report);
std::string ToJson(const DemoReport& report);

}  // namespace annulus
