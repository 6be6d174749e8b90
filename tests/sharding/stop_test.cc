// Planning that nobody waits for any more ends soon, with the reason.
#include "base/stop.h"

#include <atomic>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "sharding/planner.h"
#include "tests/catch.h"

namespace annulus {
namespace {

// A pattern whose rows cost milliseconds each.
std::string Costly(int terms) {
  std::string text = "s2(1,1,1000)";
  for (int i = 1; i < terms; ++i) absl::StrAppend(&text, " | s2(1,1,", 1000 + i, ")");
  return text;
}

Problem ProblemOf(const std::string& pattern, int64_t q_tokens, int64_t kv_tokens) {
  const PartitionSpec cut{PartitionKind::kBlockCyclic, 4};
  return {.q_tokens = q_tokens,
          .kv_tokens = kv_tokens,
          .heads = 2,
          .kv_heads = 2,
          .head_dim = 16,
          .v_head_dim = 16,
          .pattern = Pattern::Parse(pattern, 2).value(),
          .home = Home::kCaller,
          .home_partition = {PartitionKind::kZigzag, 1},
          .kv = Layout::Of(Placement::kTokens, 4, 2, 2, cut, BlocksOf(kv_tokens))};
}

TEST_CASE("a stop says why once it has stopped, and asks no more") {
  int asked = 0;
  const Stop stop([&] { return ++asked < 3 ? absl::OkStatus() : absl::CancelledError("enough"); });
  const Stop copy = stop;
  CHECK_FALSE(stop.stopped());
  CHECK(copy.status().ok());
  CHECK(stop.stopped());
  CHECK(copy.status() == absl::CancelledError("enough"));
  CHECK(asked == 3);
  CHECK_FALSE(Stop().stopped());
  CHECK(Stop().status().ok());
}

TEST_CASE("planning that stops anywhere says why, and never gives a plan that is none") {
  const Problem problem = ProblemOf("s2(64,2,3) | sink(70) & causal", 3000, 5000);
  const Plan whole = BuildPlan(PlanKind::kGroupCast, problem).value();
  int plans = 0;
  for (int most = 0; most < 400; most += most < 40 ? 1 : 37) {
    CAPTURE(most);
    const auto stop_after = [most] {
      return Stop([left = most]() mutable {
        return left-- > 0 ? absl::OkStatus() : absl::DeadlineExceededError("late");
      });
    };
    const auto decision = Choose(problem, {}, std::nullopt, stop_after());
    CHECK((decision.ok() || absl::IsDeadlineExceeded(decision.status())));
    for (const PlanKind kind : kPlanKinds) {
      const auto plan = BuildPlan(kind, problem, kStagesDefault, stop_after());
      if (plan.ok()) {
        ++plans;
        CHECK(plan->Validate().ok());
      } else {
        CHECK(absl::IsDeadlineExceeded(plan.status()));
      }
    }
    const absl::Status valid = whole.Validate(stop_after());
    CHECK((valid.ok() || absl::IsDeadlineExceeded(valid)));
  }
  CHECK(plans > 0);
  CHECK(absl::IsDeadlineExceeded(
      Choose(problem, {}, std::nullopt, Stop([] { return absl::DeadlineExceededError("late"); }))
          .status()));
}

TEST_CASE("however much a pattern costs, planning ends within 50 ms of its deadline") {
  const Problem problem = ProblemOf(Costly(500), 100'000, 200'000);
  const auto late_by = [](auto plan) {
    const absl::Time deadline = absl::Now() + absl::Milliseconds(200);
    const Stop stop([deadline] {
      return absl::Now() < deadline ? absl::OkStatus() : absl::DeadlineExceededError("late");
    });
    CHECK(absl::IsDeadlineExceeded(plan(stop)));
    return absl::ToDoubleMilliseconds(absl::Now() - deadline);
  };
  // Twice what is promised, since others use these cores too.
  CHECK(late_by([&](const Stop& stop) {
          return Choose(problem, {}, std::nullopt, stop).status();
        }) < 100);
  CHECK(late_by([&](const Stop& stop) {
          return BuildPlan(PlanKind::kPassQ, problem, 1, stop).status();
        }) < 100);
  CHECK(late_by([&](const Stop& stop) {
          SizeOf(problem, stop);
          return stop.status();
        }) < 100);
}

}  // namespace
}  // namespace annulus
