#include "sharding/planner.h"

#include <ctime>
#include <numeric>

#include "tests/sharding/random_problem.h"

namespace annulus {
namespace {

Decision ChooseFrom(const Problem& problem, const ClusterModel& cluster,
                    std::optional<PlanKind> asked = std::nullopt) {
  auto decision = Choose(problem, cluster, asked);
  INFO(decision.status());
  REQUIRE(decision.ok());
  return *std::move(decision);
}

const PlanCost& CostOf(const Decision& decision, PlanKind kind) {
  for (const PlanCost& cost : decision.candidates) {
    if (cost.kind == kind) return cost;
  }
  FAIL("no such candidate");
  return decision.candidates.front();
}

// Existing pairs of the cells that hold an allowed pair, by walking them.
int64_t PairsOf(const Problem& problem, const AllowedBlocks& allowed, int kv_head,
                const BlockSet& q_blocks, const BlockSet& kv_blocks) {
  int64_t pairs = 0;
  for (int64_t q : q_blocks.ToVector()) {
    for (int64_t k : kv_blocks.ToVector()) {
      if (!allowed.At(kv_head, q, k)) continue;
      const int64_t rows =
          std::min(problem.q_range().end, 64 * q + 64) - std::max(problem.q_range().begin, 64 * q);
      pairs += rows *
               (std::min(problem.keys().end, 64 * k + 64) - std::max(problem.keys().begin, 64 * k));
    }
  }
  return pairs;
}

TEST_CASE("work is counted to the pair, by every plan and by the pattern alike") {
  const uint64_t seed = 4242;
  CAPTURE(seed);
  Rng rng(seed);
  for (int round = 0; round < 60; ++round) {
    const Problem problem = RandomProblem(rng);
    INFO("round " << round << ": " << Describe(problem));
    const AllowedBlocks allowed(problem);
    const ProblemSize size = SizeOf(problem);
    int64_t visited = 0;
    for (int64_t q = problem.q_range().begin; q < problem.q_range().end; ++q) {
      for (int64_t k = problem.keys().begin; k < problem.keys().end; ++k) {
        for (int head = 0; head < problem.kv_heads; ++head) {
          visited += problem.pattern.Allows(head, q, k) ? problem.group() : 0;
        }
      }
    }
    REQUIRE(size.visited_pairs == visited);
    REQUIRE(size.density == Approx(static_cast<double>(visited) / problem.heads / problem.q_tokens /
                                   problem.kv_tokens));
    const Decision decision = ChooseFrom(problem, ClusterModel{});
    REQUIRE(decision.candidates.size() == std::size(kPlanKinds));
    for (PlanKind kind : kPlanKinds) {
      INFO(Name(kind));
      const PlanCost& cost = CostOf(decision, kind);
      const Plan plan = *BuildPlan(kind, problem, cost.stages);
      REQUIRE(cost.bytes_total == plan.BytesTotal());
      std::vector<int64_t> expected(static_cast<size_t>(plan.world()));
      for (const Round& round : plan.rounds()) {
        for (const Compute& compute : round.computes) {
          for (int head = compute.heads.first; head < compute.heads.end(); ++head) {
            expected[compute.rank] += PairsOf(problem, allowed, head / problem.group(),
                                              compute.q_blocks, compute.kv_blocks);
          }
        }
      }
      int64_t total = 0, most = 0;
      for (const WorkerLoad& worker : cost.workers) {
        REQUIRE(worker.work_pairs == expected[worker.worker]);
        REQUIRE(worker.bytes_sent == plan.BytesSent(worker.worker));
        REQUIRE(worker.bytes_received == plan.BytesReceived(worker.worker));
        total += worker.work_pairs;
        most = std::max(most, worker.work_pairs);
      }
      REQUIRE(total == size.work_pairs);
      const double imbalance =
          static_cast<double>(most) * plan.world() / std::max<int64_t>(1, total);
      REQUIRE(cost.imbalance == Approx(total == 0 ? 1 : imbalance));
      REQUIRE(cost.cost_s == Approx(Cost(plan, ClusterModel{}).cost_s));
      REQUIRE(cost.exposed_comm_s >= 0);
    }
  }
}

TEST_CASE("decode goes by pass-q") {
  ClusterModel cluster;
  for (Home home : {Home::kOwners, Home::kCaller}) {
    for (const char* pattern : {"causal", "s2(64,16,4)", "window(4096)"}) {
      const Problem problem =
          MakeProblem(1, 1 << 20, 8, 4, 4, pattern, {PartitionKind::kBlockCyclic, 64}, home);
      CAPTURE(pattern);
      CHECK(ChooseFrom(problem, cluster).plan.kind() == PlanKind::kPassQ);
    }
  }
}

TEST_CASE("where the network is slow a narrow window goes by group-cast, full attention by heads") {
  ClusterModel cluster;
  cluster.inside_bytes_per_s = 1e6;
  cluster.inside_latency_s = 0;
  const Problem window =
      MakeProblem(1 << 16, 1 << 16, 8, 8, 4, "window(1024)", {PartitionKind::kContiguous, 1});
  CHECK(ChooseFrom(window, cluster).plan.kind() == PlanKind::kGroupCast);
  // A ring moves K and V three times; all-to-all moves q, K, V and out once or less.
  const Problem full = MakeProblem(1 << 14, 1 << 14, 8, 8, 8, "full");
  CHECK(ChooseFrom(full, cluster).plan.kind() == PlanKind::kHeads);
}

TEST_CASE("the lightest moves the fewest bytes of those that cost nearly the least") {
  const auto cost = [](PlanKind kind, double cost_s, int64_t bytes) {
    PlanCost made;
    made.kind = kind;
    made.cost_s = cost_s;
    made.bytes_total = bytes;
    return made;
  };
  const std::vector<PlanCost> candidates = {
      cost(PlanKind::kRing, 1.00, 900), cost(PlanKind::kHeads, 1.02, 500),
      cost(PlanKind::kGroupCast, 1.025, 700), cost(PlanKind::kPassQ, 1.04, 10)};
  CHECK(Lightest(candidates, [](PlanKind) { return true; }).kind == PlanKind::kHeads);
  // The cheapest is that of the eligible ones.
  const auto no_kv_moves = [](PlanKind kind) {
    return kind == PlanKind::kGroupCast || kind == PlanKind::kPassQ;
  };
  CHECK(Lightest(candidates, no_kv_moves).kind == PlanKind::kPassQ);
  const auto ring = [](PlanKind kind) { return kind == PlanKind::kRing; };
  CHECK(Lightest(candidates, ring).kind == PlanKind::kRing);
}

TEST_CASE("where nothing has to move the first kind wins, and an asked one is obeyed") {
  const Problem problem = MakeProblem(4096, 4096, 4, 2, 1, "causal");
  const Decision decision = ChooseFrom(problem, ClusterModel{});
  CHECK(decision.plan.kind() == PlanKind::kRing);
  for (PlanKind kind : kPlanKinds) {
    const Decision asked = ChooseFrom(problem, ClusterModel{}, kind);
    CHECK(asked.plan.kind() == kind);
    CHECK(asked.candidates.front().kind == PlanKind::kRing);
  }
}

TEST_CASE("zigzag balances causal work and contiguous does not") {
  const Problem problem = MakeProblem(1 << 16, 1 << 16, 4, 2, 8, "causal");
  const Decision decision = ChooseFrom(problem, ClusterModel{});
  CHECK(CostOf(decision, PlanKind::kRing).imbalance < 1.01);
  CHECK(CostOf(decision, PlanKind::kRingContiguous).imbalance > 1.8);
  for (size_t i = 1; i < decision.candidates.size(); ++i) {
    CHECK(decision.candidates[i - 1].cost_s <= decision.candidates[i].cost_s);
  }
}

TEST_CASE("a slow link between nodes is paid for") {
  const Problem problem = MakeProblem(1 << 14, 1 << 14, 8, 8, 4, "causal");
  ClusterModel one, two;
  one.flops = two.flops = 1e15;
  two.workers_per_node = 2;
  two.between_bytes_per_s = one.inside_bytes_per_s / 100;
  const Plan plan = *BuildPlan(PlanKind::kRing, problem);
  CHECK(Cost(plan, two).cost_s > 10 * Cost(plan, one).cost_s);
}

TEST_CASE("each term of the model is what cluster.h says") {
  const Problem problem = MakeProblem(64, 64, 2, 1, 1, "full");  // 16-bit, both dims 64
  ClusterModel cluster;
  cluster.flops = 1e6;
  cluster.flops_f32 = 2e6;
  cluster.read_bytes_per_s = 1e3;
  cluster.launch_s = 7;
  cluster.inside_bytes_per_s = 100;
  cluster.inside_latency_s = 3;
  CHECK(ComputeSeconds(cluster, problem, {.work_pairs = 8192}) == Approx(2.0 * 8192 * 128 / 1e6));
  Problem f32 = problem;
  f32.dtype = DType::kF32;
  CHECK(ComputeSeconds(cluster, f32, {.work_pairs = 8192}) == Approx(8192 * 128 / 1e6));
  // Whichever of computing and reading takes longer.
  const ComputeLoad reads{.work_pairs = 1, .tokens_read = 64};
  CHECK(ComputeSeconds(cluster, problem, reads) == Approx(64 * 128 * 2 / 1e3));
  CHECK(ComputeSeconds(cluster, problem, {.partial_rows = 5}) == Approx(2 * 5 * 65 * 4 / 1e3));
  CHECK(ComputeSeconds(cluster, problem, {.launches = 2}) == 14);
  CHECK(MergeSeconds(cluster, problem, 5) == Approx(3 * 5 * 65 * 4 / 1e3));
  CHECK(LinkSeconds(cluster, true, 500, 2) == Approx(11));
  const ClusterModel shared = SharedBy(cluster, 4);
  CHECK(shared.flops == 2.5e5);
  CHECK(shared.read_bytes_per_s == 250);
  CHECK(shared.inside_bytes_per_s == 25);
  CHECK(shared.inside_latency_s == 3);
}

TEST_CASE("a plan costs the sum of its rounds, each as its slowest rank") {
  // One block against one block of 64 tokens, 2 heads: 8192 pairs in one launch.
  const Problem alone = MakeProblem(64, 64, 2, 1, 1, "full");
  ClusterModel cluster;
  cluster.flops = 1e6;
  cluster.launch_s = 7;
  cluster.read_bytes_per_s = 1e18;
  const PlanCost one = Cost(*BuildPlan(PlanKind::kRing, alone), cluster);
  CHECK(one.cost_s == Approx(2.0 * 8192 * 128 / 1e6 + 7));
  CHECK(one.compute_s == Approx(one.cost_s));

  // Decode over two ranks: queries go out, a partial comes back and is merged.
  const Problem decode = MakeProblem(1, 128, 1, 1, 2, "full");
  cluster.flops = 1e18;
  cluster.launch_s = 0;
  cluster.read_bytes_per_s = 1e3;
  cluster.inside_bytes_per_s = 1e18;
  cluster.inside_latency_s = 1000;
  const PlanCost two = Cost(*BuildPlan(PlanKind::kPassQ, decode), cluster);
  CHECK(two.latency_s == Approx(2000));
  CHECK(two.comm_s == Approx(2000));
  CHECK(two.merge_s == Approx(3 * 65 * 4 / 1e3));
  CHECK(two.cost_s == Approx(two.compute_s + two.exposed_comm_s + two.merge_s));
}

TEST_CASE("stages are taken where there is something to hide, and none where there is not") {
  const Problem problem = MakeProblem(1 << 15, 1 << 15, 8, 8, 4, "causal");
  ClusterModel cluster;
  cluster.inside_latency_s = 0;
  cluster.launch_s = 0;
  cluster.read_bytes_per_s = 1e15;
  // Pages take half as long to travel as to compute with.
  const PlanCost slow = Cost(*BuildPlan(PlanKind::kGroupCast, problem, 1), cluster);
  cluster.inside_bytes_per_s *= 2 * slow.comm_s / slow.compute_s;
  const auto stages_of = [&] {
    return CostOf(ChooseFrom(problem, cluster, PlanKind::kGroupCast), PlanKind::kGroupCast).stages;
  };
  CHECK(stages_of() == 8);
  cluster.inside_latency_s = slow.compute_s / 10;  // a message costs more than a stage hides
  CHECK(stages_of() <= 2);
  cluster.inside_latency_s = 0;
  cluster.inside_bytes_per_s = 1e18;
  cluster.launch_s = 1;
  CHECK(stages_of() == 0);
}

TEST_CASE("few rows of a long context are weighed block by block alike") {
  const uint64_t seed = 606;
  CAPTURE(seed);
  Rng rng(seed);
  for (int round = 0; round < 20; ++round) {
    const int64_t tokens = (1 << 18) - rng.Between(0, 63);
    const Problem problem =
        MakeProblem(rng.Between(1, 400), tokens, 4, 2, 3, RandomPattern(rng, 2), RandomSpec(rng));
    INFO("round " << round << ": " << Describe(problem));
    const Plan plan = *BuildPlan(PlanKind::kGroupCast, problem);
    const PlanLoads loads = ComputeLoads(plan);
    for (size_t s = 0; s < plan.rounds().size(); ++s) {
      for (size_t c = 0; c < plan.rounds()[s].computes.size(); ++c) {
        const Compute& compute = plan.rounds()[s].computes[c];
        int64_t pairs = 0, read = 0;
        for (int head = compute.heads.first; head < compute.heads.end(); ++head) {
          BlockSet blocks;
          for (int64_t q_block : compute.q_blocks.ToVector()) {
            const TokenRange queries{std::max(q_block * 64, problem.q_range().begin),
                                     std::min(q_block * 64 + 64, tokens)};
            std::vector<TileRun> tiles;
            problem.pattern.Row(head / 2, queries, tokens, &tiles);
            for (const TileRun& tile : tiles) {
              const BlockSet run = BlockSet::FromRuns({tile.blocks}).Intersect(compute.kv_blocks);
              pairs += run.TokenCount(tokens) * queries.size();
              blocks = blocks.Union(run);
            }
          }
          if (head % 2 == 0 || head == compute.heads.first) read += blocks.TokenCount(tokens);
        }
        REQUIRE(loads[s][c].work_pairs == pairs);
        REQUIRE(loads[s][c].tokens_read == read);
      }
    }
  }
}

TEST_CASE("long contexts over 64 workers are planned without walking tokens") {
  // Processor time; 10M tokens take five times as long. Walking tokens would take days.
  constexpr double kSecondsMax = 60;
  for (const char* pattern : {"s2(64,16,16)", "causal"}) {
    const Problem problem = MakeProblem(1 << 21, 1 << 21, 8, 8, 64, pattern);
    const std::clock_t start = std::clock();
    const Decision decision = ChooseFrom(problem, ClusterModel{});
    const ProblemSize size = SizeOf(problem);
    CHECK(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC < kSecondsMax);
    for (const PlanCost& cost : decision.candidates) {
      int64_t work = 0;
      for (const WorkerLoad& worker : cost.workers) work += worker.work_pairs;
      CHECK(work == size.work_pairs);
    }
  }
}

}  // namespace
}  // namespace annulus
