// The cases that annulus_scale plays: which plan under which pattern, how it grows with the ranks,
// and what came out. Values; pure functions but for the cores they use.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/scale/simulator.h"
#include "sharding/plan.h"
#include "sharding/planner.h"

namespace annulus {

inline constexpr int kStagesOfPlanner = -1;  // as many as the planner finds cheapest

struct Scenario {
  std::string name;
  PlanKind plan = PlanKind::kRing;
  std::string pattern;
  bool decode = false;          // one query, the context's last token; else every token is a query
  int stages = kStagesDefault;  // of overlap (sharding/plan.h), or kStagesOfPlanner
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
  // 4·visited pairs·head_dim / time / ranks; absent where the pattern shows nothing.
  std::optional<double> tflops_per_rank;
  double max_over_mean_work = 1;
  TimeSplit split;
  // The work of a rank over its rate, mean over ranks; the rest of split.compute_s is overhead:
  // launches, and partials read, written and merged. Under causal patterns work grows with the
  // context, so with the ranks in weak scaling too.
  double work_s = 0;
  // work_s / seconds: 1 is the compute limit; over that of the series' first row. Absent where the
  // pattern shows nothing.
  std::optional<double> efficiency;
  std::optional<double> efficiency_to_first;
};

// Plans, plays and measures one case; efficiency_to_first is left to who knows the first row.
// INVALID_ARGUMENT for a shape that makes no sense.
absl::StatusOr<ScaleRow> Play(const Series& series, const Shape& shape, int world,
                              const ClusterModel& cluster);

}  // namespace annulus
