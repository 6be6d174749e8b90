#include "bench/scale/scenario.h"

#include <algorithm>
#include <string>

#include "bench/scale/report.h"
#include "tests/catch.h"

namespace annulus {
namespace {

ClusterModel Cluster() {
  return {.workers_per_node = 8,
          .inside_bytes_per_s = 363e9,
          .inside_latency_s = 3e-6,
          .between_bytes_per_s = 50e9,
          .between_latency_s = 5e-6,
          .flops = 560e12,
          .read_bytes_per_s = 4.3e12};
}

const Scenario& Named(const std::string& name) {
  return *std::find_if(Scenarios().begin(), Scenarios().end(),
                       [&](const Scenario& scenario) { return scenario.name == name; });
}

}  // namespace

TEST_CASE("every scenario plays, weak and strong, and its terms add up") {
  for (const Scenario& scenario : Scenarios()) {
    for (Scaling scaling : {Scaling::kWeak, Scaling::kStrong}) {
      INFO(scenario.name);
      const auto row = Play({scenario, scaling, 4096}, Shape{}, 16, Cluster());
      REQUIRE(row.ok());
      CHECK(row->tokens == (scaling == Scaling::kWeak ? 16 * 4096 : 4096));
      const TimeSplit& split = row->split;
      CHECK(split.compute_s + split.imbalance_s + split.bandwidth_s + split.latency_s ==
            Approx(split.run.seconds));
      CHECK(row->work_s > 0);
      CHECK(row->work_s <= split.compute_s);
      CHECK(row->efficiency.value() == Approx(row->work_s / split.run.seconds));
      CHECK(row->bytes_sent > 0);
      const Columns columns = ToColumns(*row);
      const std::string header = columns.CsvHeader(), line = columns.CsvLine();
      // Only the pattern may have commas of its own.
      const auto commas = [](const std::string& text) {
        return std::count(text.begin(), text.end(), ',');
      };
      CHECK(commas(line) == commas(header) + commas(scenario.pattern));
    }
  }
}

TEST_CASE("a ring's figures are those of pencil and paper") {
  // 16 ranks pass 15 shards each: 4096 tokens of 8 heads, K and V of 128 bf16.
  const auto row = Play({Named("ring"), Scaling::kWeak, 4096}, Shape{}, 16, Cluster());
  REQUIRE(row.ok());
  CHECK(row->messages == 16 * 15);
  CHECK(row->bytes_sent == int64_t{16} * 15 * 4096 * 8 * 256 * 2);
  // Each query block of a rank computes as many blocks as any other rank's mirrored pair.
  CHECK(row->max_over_mean_work == Approx(1));
  const double pairs = 32.0 * 65536 * (65536 + 64) / 2;
  CHECK(row->work_s == Approx(4 * pairs * 128 / 560e12 / 16));
}

TEST_CASE("decode is bound by reading, ranks without work make imbalance") {
  const auto row = Play({Named("decode"), Scaling::kStrong, 1 << 20}, Shape{}, 8, Cluster());
  REQUIRE(row.ok());
  CHECK(row->work_s == Approx((1 << 20) * 8.0 * 256 * 2 / 8 / 4.3e12));
  const auto idle = Play({Named("ring"), Scaling::kStrong, 64}, Shape{}, 8, Cluster());
  REQUIRE(idle.ok());
  CHECK(idle->max_over_mean_work == Approx(8));
  CHECK(idle->split.imbalance_s == Approx(7 * idle->split.compute_s));
}

TEST_CASE("where a pattern shows nothing there is no rate and no efficiency") {
  for (const PlanKind kind : {PlanKind::kRing, PlanKind::kHeads, PlanKind::kGroupCast}) {
    const Scenario scenario = {"none", kind, "window(0)", false, kStagesOfPlanner};
    const auto row = Play({scenario, Scaling::kStrong, 4096}, Shape{}, 2, Cluster());
    REQUIRE(row.ok());
    CHECK(!row->efficiency.has_value());
    CHECK(!row->tflops_per_rank.has_value());
    const std::string text = ToText(*row), csv = ToColumns(*row).CsvLine();
    INFO(text << csv);
    CHECK(text.find("nan") == std::string::npos);
    CHECK(text.find(" - ") != std::string::npos);
    CHECK(csv.find("null") == std::string::npos);
    CHECK(csv.find(",,,") != std::string::npos);  // efficiency, efficiency_to_first, the rate
  }
}

TEST_CASE("stages left to the planner are those of its cheapest plan, for any pattern") {
  const std::string pattern = "heads(0-1: causal; 2-7: window(4096))";
  const Scenario scenario = {"mixed", PlanKind::kGroupCast, pattern, false, kStagesOfPlanner};
  const auto row = Play({scenario, Scaling::kStrong, 65536}, Shape{}, 4, Cluster());
  REQUIRE(row.ok());
  double best = 0;
  for (int stages : {0, 1, 2, 4, 8}) {
    Scenario fixed = scenario;
    fixed.stages = stages;
    const auto one = Play({fixed, Scaling::kStrong, 65536}, Shape{}, 4, Cluster());
    REQUIRE(one.ok());
    if (best == 0 || one->split.run.seconds < best) best = one->split.run.seconds;
  }
  CHECK(row->split.run.seconds <= 1.02 * best);  // the planner weighs steps, not messages
}

}  // namespace annulus
