// A valid plan, damaged in one place, must be refused.
#include <algorithm>
#include <ctime>

#include "tests/sharding/random_problem.h"

namespace annulus {
namespace {

// Damages one place of the rounds; says what it did, or nothing if there was nothing to damage.
std::string Damage(Rng& rng, const Problem& problem, const AllowedBlocks& allowed,
                   std::vector<Round>* rounds) {
  std::vector<Transfer*> transfers;
  std::vector<std::vector<Transfer>*> lists;
  std::vector<Compute*> computes;
  std::vector<std::vector<Compute>*> compute_lists;
  for (Round& round : *rounds) {
    for (Transfer& t : round.transfers) {
      transfers.push_back(&t);
      lists.push_back(&round.transfers);
    }
    for (Compute& c : round.computes) {
      // Only computes with work: losing another harms nobody.
      bool works = false;
      for (int64_t row : c.q_blocks.ToVector()) {
        for (int64_t block : c.kv_blocks.ToVector()) {
          works |= allowed.At(c.heads.first / problem.group(), row, block);
        }
      }
      if (!works) continue;
      computes.push_back(&c);
      compute_lists.push_back(&round.computes);
    }
  }
  const uint64_t what = rng.Below(6);
  if (what < 3 && !transfers.empty()) {
    const size_t at = rng.Below(transfers.size());
    Transfer& t = *transfers[at];
    if (what == 0 && t.kind == Transfer::Kind::kPartial) {
      lists[at]->erase(lists[at]->begin() + (&t - lists[at]->data()));
      return "a partial stays away";
    }
    if (what == 1) {
      const Transfer copy = t;
      lists[at]->push_back(copy);
      return "a transfer twice";
    }
    if (t.kind == Transfer::Kind::kQuery && t.destination != kCaller) {
      lists[at]->erase(lists[at]->begin() + (&t - lists[at]->data()));
      return "queries not sent";
    }
  } else if (what >= 3 && !computes.empty()) {
    const size_t at = rng.Below(computes.size());
    Compute& c = *computes[at];
    if (what == 3) {
      compute_lists[at]->erase(compute_lists[at]->begin() + (&c - compute_lists[at]->data()));
      return "a compute lost";
    }
    if (what == 4) {
      const Compute copy = c;
      compute_lists[at]->push_back(copy);
      return "a compute twice";
    }
    // The home of the rows may well compute them too.
    const int other = (c.rank + 1) % problem.world();
    if (problem.world() > 1 && !c.q_blocks.Subtract(problem.HomeRows(other)).empty()) {
      c.rank = other;
      return "a compute at a rank that lacks its rows or pages, or leaves the partial there";
    }
  }
  return "";
}

TEST_CASE("a damaged plan is refused") {
  const uint64_t seed = 515;
  CAPTURE(seed);
  Rng rng(seed);
  int damaged = 0;
  for (int round = 0; round < 120; ++round) {
    const Problem problem = RandomProblem(rng);
    const AllowedBlocks allowed(problem);
    for (PlanKind kind : kPlanKinds) {
      const auto plan = BuildPlan(kind, problem, static_cast<int>(rng.Below(4)));
      REQUIRE(plan.ok());
      std::vector<Round> rounds = plan->rounds();
      const std::string damage = Damage(rng, problem, allowed, &rounds);
      if (damage.empty()) continue;
      ++damaged;
      INFO("round " << round << ": " << Name(kind) << ", " << damage << ", " << Describe(problem));
      const absl::Status status = Plan(kind, problem, rounds).Validate();
      CAPTURE(status.ToString());
      REQUIRE(status.code() == absl::StatusCode::kInternal);
    }
  }
  CHECK(damaged > 200);
}

TEST_CASE("a plan is refused for each thing that can be wrong with it") {
  const Problem problem = MakeProblem(256, 256, 2, 1, 2, "causal");
  const Plan good = *BuildPlan(PlanKind::kRing, problem);
  REQUIRE(good.Validate().ok());
  const auto message = [&](void (*spoil)(std::vector<Round>&)) {
    std::vector<Round> rounds = good.rounds();
    spoil(rounds);
    return std::string(Plan(PlanKind::kRing, problem, rounds).Validate().message());
  };
  const auto has = [](const std::string& text, const char* part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  };
  using Rounds = std::vector<Round>;
  has(message([](Rounds& s) { s[0].transfers[0].source = 5; }), "out of range");
  has(message([](Rounds& s) { s[0].transfers[0].source = kCaller; }), "out of range");
  has(message([](Rounds& s) { s[0].transfers[0].heads.count = 2; }), "out of range");
  has(message([](Rounds& s) { s[0].transfers[0].blocks = BlockSet::Range(0, 9); }), "out of range");
  has(message([](Rounds& s) { s[0].computes[0].kv_blocks = BlockSet::Range(4, 1); }),
      "out of range");
  has(message(
          [](Rounds& s) { std::swap(s[0].transfers[0].source, s[0].transfers[0].destination); }),
      "sends KV it lacks");
  has(message([](Rounds& s) { s[0].transfers.clear(); }), "lacks KV");
  has(message([](Rounds& s) { std::swap(s[0], s[1]); }), "lacks KV");
  has(message([](Rounds& s) { s[1].computes.clear(); }), "0 times");
  has(message([](Rounds& s) { s[0].computes[0].kv_blocks = BlockSet::Range(0, 4); }), "lacks KV");
  has(message([](Rounds& s) {
        s[1].transfers.push_back({Transfer::Kind::kPartial, 0, 1, {0, 2}, BlockSet::Range(0, 1)});
      }),
      "keeps a partial");
  has(message([](Rounds& s) {
        s[1].transfers.push_back({Transfer::Kind::kPartial, 0, 1, {0, 2}, BlockSet::Range(1, 1)});
      }),
      "partial it lacks");
}

TEST_CASE("long contexts over 64 ranks are built and checked without walking tokens") {
  // Processor time, since other work may share the machine; walking tokens would take minutes.
  constexpr double kSecondsMax = 20;
  const Problem problem = MakeProblem(1 << 18, 1 << 18, 8, 8, 64, "s2(64,16,16)");
  for (PlanKind kind : kPlanKinds) {
    CAPTURE(Name(kind));
    const std::clock_t start = std::clock();
    const auto plan = BuildPlan(kind, problem);
    REQUIRE(plan.ok());
    const absl::Status status = plan->Validate();
    CAPTURE(status.ToString());
    CHECK(status.ok());
    CHECK(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC < kSecondsMax);
  }
}

}  // namespace
}  // namespace annulus
