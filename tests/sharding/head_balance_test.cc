// Plans by heads balance work where heads differ: by weight, by query heads, by rows.
#include <numeric>

#include "absl/strings/str_cat.h"
#include "sharding/assign_heads.h"
#include "sharding/planner.h"
#include "tests/sharding/random_problem.h"

namespace annulus {
namespace {

double ImbalanceOf(const Decision& decision, PlanKind kind) {
  for (const PlanCost& cost : decision.candidates) {
    if (cost.kind == kind) return cost.imbalance;
  }
  FAIL("no such plan");
  return 0;
}

// Each KV head has a window of its own, or sees all, as in MoA.
std::string RandomSpans(Rng& rng, int kv_heads, int64_t tokens) {
  std::string text = absl::StrCat("heads(0: causal & window(", rng.Between(64, tokens / 2), ")");
  for (int head = 1; head < kv_heads; ++head) {
    absl::StrAppend(&text, "; ", head, ": causal");
    if (rng.Below(4) == 0) continue;
    absl::StrAppend(&text, " & (sink(64) | window(", rng.Between(64, tokens), "))");
  }
  return text + ")";
}

// All heads and rows of a plan's computes as the even cut has them.
bool IsEven(const Plan& plan) {
  const Problem& problem = plan.problem();
  const HeadMap even = HeadMap::Even(problem.world(), problem.heads, problem.kv_heads);
  for (const Round& round : plan.rounds()) {
    for (const Compute& compute : round.computes) {
      if (HeadRanges{compute.heads} != even.QueryHeads(compute.rank)) return false;
      if (!compute.q_blocks.SameBlocks(problem.QueryBlocks())) return false;
    }
  }
  return true;
}

}  // namespace

TEST_CASE("plans by heads balance dense heads beside sparse ones") {
  const int64_t tokens = 131072;
  for (const int world : {2, 3, 4, 7, 8, 16}) {
    for (const int heads : {8, 32, 64}) {
      const Problem problem =
          MakeProblem(tokens, tokens, heads, 8, world, "s2(64,16,16,dense_heads=2)");
      CAPTURE(world, heads);
      const auto decision = Choose(problem, {});
      REQUIRE(decision.ok());
      CHECK(ImbalanceOf(*decision, PlanKind::kHeads) <= 1.05);
      CHECK(ImbalanceOf(*decision, PlanKind::kMesh) <= 1.05);
    }
  }
}

TEST_CASE("where group-cast balances spans of any lengths, so do heads and mesh") {
  const uint64_t seed = 7301;
  CAPTURE(seed);
  Rng rng(seed);
  int balanced = 0;
  for (int round = 0; round < 60; ++round) {
    const int worlds[] = {2, 3, 4, 7, 8};
    const int kv_heads = static_cast<int>(rng.Between(2, 8));
    const int heads = kv_heads * (1 << rng.Below(4));
    const int world = worlds[rng.Below(5)];
    const int64_t tokens = 64 * world * rng.Between(80, 200) - rng.Between(0, 63);
    const Problem problem =
        MakeProblem(tokens, tokens, heads, kv_heads, world, RandomSpans(rng, kv_heads, tokens),
                    {PartitionKind::kZigzag, 1}, rng.Below(2) == 0 ? Home::kOwners : Home::kCaller);
    INFO("round " << round << ": " << Describe(problem));
    const auto decision = Choose(problem, {});
    REQUIRE(decision.ok());
    if (ImbalanceOf(*decision, PlanKind::kGroupCast) > 1.05) continue;
    ++balanced;
    for (const PlanKind kind : {PlanKind::kHeads, PlanKind::kMesh}) {
      CAPTURE(Name(kind));
      CHECK(ImbalanceOf(*decision, kind) <= 1.05);
      const auto plan = BuildPlan(kind, problem);
      REQUIRE(plan.ok());
      const absl::Status valid = plan->Validate();
      CAPTURE(valid.ToString());
      CHECK(valid.ok());
    }
  }
  CHECK(balanced > 30);
}

TEST_CASE("heads that weigh about the same are cut evenly") {
  for (const char* pattern : {"full", "causal", "window(3000)", "s2(64,16,16)", "s2(64,4,8)"}) {
    for (const int world : {2, 3, 4, 7, 8, 40}) {
      CAPTURE(pattern, world);
      const Problem problem = MakeProblem(131072, 131072, 32, 8, world, pattern);
      const auto plan = BuildPlan(PlanKind::kHeads, problem);
      REQUIRE(plan.ok());
      CHECK(IsEven(*plan));
    }
  }
}

TEST_CASE("heads are handed out once, the heaviest with the most care") {
  const uint64_t seed = 7302;
  CAPTURE(seed);
  Rng rng(seed);
  for (int round = 0; round < 300; ++round) {
    const int group = static_cast<int>(rng.Between(1, 4));
    const int kv_heads = static_cast<int>(rng.Between(1, 12));
    const int groups = static_cast<int>(rng.Between(1, 20));
    const bool splits_rows = rng.Below(2) == 0;
    std::vector<int64_t> work;
    for (int head = 0; head < kv_heads; ++head) {
      const int64_t each = rng.Below(5) == 0 ? 0 : int64_t{1} << rng.Below(45);
      for (int i = 0; i < group; ++i) work.push_back(each + (round % 7 == 0 ? rng.Below(9) : 0));
    }
    const int64_t total = std::accumulate(work.begin(), work.end(), int64_t{0});
    CAPTURE(round, group, kv_heads, groups, splits_rows);
    const HeadShares shares = AssignHeads(work, group, groups, splits_rows);
    REQUIRE(std::ssize(shares) == groups);
    std::vector<std::vector<bool>> seen(work.size(), std::vector<bool>(kHeadParts));
    for (const std::vector<HeadShare>& mine : shares) {
      double load = 0;
      int end = 0;
      for (const HeadShare& share : mine) {
        REQUIRE(share.heads.count >= 1);
        REQUIRE(share.heads.first >= end);
        REQUIRE((share.whole() || (splits_rows && share.heads.count == 1)));
        end = share.heads.end();
        for (int head = share.heads.first; head < end; ++head) {
          for (int part = share.part_begin; part < share.part_end; ++part) {
            REQUIRE(!seen[head][part]);
            seen[head][part] = true;
          }
          load +=
              static_cast<double>(work[head]) * (share.part_end - share.part_begin) / kHeadParts;
        }
      }
      if (splits_rows) CHECK(load <= 1.05 * static_cast<double>(total) / groups + 1);
    }
    for (const std::vector<bool>& parts : seen) {
      REQUIRE(std::find(parts.begin(), parts.end(), false) == parts.end());
    }
  }
}

}  // namespace annulus
