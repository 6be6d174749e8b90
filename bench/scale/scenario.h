// The cases that annulus_scale plays: which plan under which pattern, how it grows with the ranks,
// and what came out. Values; pure functions but for the cores they use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/scale/simulator.h"
#include "sharding/plan.h"
#include "sharding/planner.h"

namespace annulus {

struct Scenario {
  std::string name;
  PlanKind plan = PlanKind::kRing;
  std::string pattern;
  bool decode = false;  // one query, the context's last token; else every token is a query
  int stages = kStagesDefault;  // of overlap (sharding/plan.h)
};

// Ring zigzag, mesh, group-cast and pass-q. Under s2(64,16,16) each of the 8 default KV heads has
// an offset of its own in the stride: step = 16 / 8.
const std::vector<Scenario>& Scenarios();

struct Shape {
  int heads = 32;
  int kv_heads = 8;
  int head_dim = 128;  // of v too
  DType dtype = DType::kBF16;
};

enum class Scaling { kWeak, kStrong };  // tokens per rank fixed, tokens in all fixed

// One scenario at growing numbers of ranks.
struct Series {
  Scenario scenario;
  Scaling scaling = Scaling::kWeak;
  int64_t tokens = 0;  // per rank or in all
};

struct ScaleRow {
  Series series;
  Shape shape;
  int world = 1;
  int64_t tokens = 0;  // of the context
  int64_t messages = 0;
  int64_t bytes_sent = 0;
  double tflops_per_rank = 0;  // 4·visited pairs·head_dim / time / ranks
  double max_over_mean_work = 1;
  TimeSplit split;
  // compute_s / seconds: what all-computing, perfectly balanced ranks would need over what they do.
  double efficiency = 0;
  // Over that of the series' first row: the usual figure of scaling, since the work of a rank over
  // its rate is what compute_s is. Under causal patterns a rank's work grows with the context.
  double efficiency_to_first = 0;
};

// Plans, plays and measures one case; efficiency_to_first is left to who knows the first row.
// INVALID_ARGUMENT for a shape that makes no sense.
absl::StatusOr<ScaleRow> Play(const Series& series, const Shape& shape, int world,
                              const ClusterModel& cluster);

}  // namespace annulus
