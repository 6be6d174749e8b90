#include "sharding/plan.h"
#include "absl/strings/str_cat.h"

#include <map>
#include <set>
#include <tuple>

#include "tests/sharding/random_problem.h"

namespace annulus {
namespace {

Plan Build(PlanKind kind, const Problem& problem, int stages = kStagesDefault) {
  auto plan = BuildPlan(kind, problem, stages);
  INFO(plan.status());
  REQUIRE(plan.ok());
  return *std::move(plan);
}

// Heads that differ so much that heads and rows are cut by weight.
Problem RandomSpans(Rng& rng) {
  Problem problem = RandomProblem(rng);
  problem.kv_tokens = problem.q_tokens = rng.Between(1000, 2000);
  problem.q_start.reset();
  problem.keys_end.reset();
  problem.kv_heads = static_cast<int>(rng.Between(2, 4));
  problem.heads = problem.kv_heads * static_cast<int>(rng.Between(1, 3));
  std::string text = "heads(0: causal";
  for (int head = 1; head < problem.kv_heads; ++head) {
    absl::StrAppend(&text, "; ", head, ": causal & window(", rng.Between(1, 1000), ")");
  }
  problem.pattern = *Pattern::Parse(text + ")", problem.kv_heads);
  problem.kv = Layout::Tokens(problem.world(), problem.heads, problem.kv_heads,
                              problem.home_partition, BlocksOf(problem.kv_tokens));
  return problem;
}

// Plays a plan with sets: what each rank holds, and which KV blocks each partial has seen.
// Written from plan.h's words, without a line of the planner.
class Simulation {
 public:
  Simulation(const Plan& plan, const AllowedBlocks& allowed)
      : plan_(plan), problem_(plan.problem()), allowed_(allowed) {
    for (int rank = 0; rank < plan.world(); ++rank) {
      ForEachHead(problem_.kv.KvHeads(rank), [&](int head) {
        for (int64_t block : problem_.kv.Blocks(rank).ToVector()) held_.insert({rank, head, block});
      });
      if (problem_.home == Home::kCaller) continue;
      for (int64_t row : plan.HomeRows(rank).ToVector()) {
        for (int head = 0; head < problem_.heads; ++head) queries_.insert({rank, head, row});
      }
    }
  }

  void Run() {
    for (const Round& round : plan_.rounds()) RunRound(round);
    CheckAnswers();
  }

  // KV pages that went to a rank that never computed with them.
  int64_t unread_pages() const { return static_cast<int64_t>(received_.size() - used_.size()); }

 private:
  using Key = std::tuple<int, int, int64_t>;  // rank, head, block

  void RunRound(const Round& round) {
    std::vector<std::pair<Key, std::vector<int64_t>>> merges;
    std::set<Key> kv, queries;
    for (const Transfer& t : round.transfers) {
      REQUIRE(t.source != t.destination);
      for (int head = t.heads.first; head < t.heads.end(); ++head) {
        for (int64_t block : t.blocks.ToVector()) {
          const Key from{t.source, head, block}, to{t.destination, head, block};
          if (t.kind == Transfer::Kind::kKv) {
            REQUIRE((held_.count(from) || late_.count(from)));
            kv.insert(to);
            received_.insert(to);
          } else if (t.kind == Transfer::Kind::kQuery) {
            REQUIRE((t.source == kCaller || queries_.count(from)));
            queries.insert(to);
          } else {
            REQUIRE(partials_.count(from));
            merges.emplace_back(to, partials_[from]);
            partials_.erase(from);
          }
        }
      }
    }
    for (const Compute& compute : round.computes) RunCompute(compute);
    for (const auto& [to, seen] : merges) {
      auto& into = partials_[to];
      into.insert(into.end(), seen.begin(), seen.end());
    }
    if (round.drop_received_kv) late_.clear();
    late_.insert(kv.begin(), kv.end());
    queries_.insert(queries.begin(), queries.end());
  }

  void RunCompute(const Compute& compute) {
    for (int head = compute.heads.first; head < compute.heads.end(); ++head) {
      const int kv_head = head / problem_.group();
      for (int64_t row : compute.q_blocks.ToVector()) {
        const Key at{compute.rank, head, row};
        REQUIRE(queries_.count(at));
        auto& partial = partials_[at];
        for (int64_t block : compute.kv_blocks.ToVector()) {
          if (!allowed_.At(kv_head, row, block)) continue;
          const Key page{compute.rank, kv_head, block};
          REQUIRE((held_.count(page) || late_.count(page)));
          if (!held_.count(page)) used_.insert(page);
          partial.push_back(block);
        }
      }
    }
  }

  void CheckAnswers() {
    for (int head = 0; head < problem_.heads; ++head) {
      for (int64_t row : problem_.QueryBlocks().ToVector()) {
        std::vector<int64_t> expected;
        for (int64_t block = 0; block < allowed_.blocks(); ++block) {
          if (allowed_.At(head / problem_.group(), row, block)) expected.push_back(block);
        }
        const int home = problem_.home == Home::kCaller ? kCaller : HomeOf(row);
        std::vector<int64_t> seen = partials_[{home, head, row}];
        std::sort(seen.begin(), seen.end());
        CAPTURE(head, row, home);
        REQUIRE(seen == expected);
      }
    }
  }

  int HomeOf(int64_t row) const {
    const int64_t blocks = BlocksOf(problem_.kv_tokens);
    const Partition tokens(problem_.home_partition, 0, blocks, plan_.world());
    return tokens.Owner(std::min(row, blocks - 1));
  }

  const Plan& plan_;
  const Problem& problem_;
  const AllowedBlocks& allowed_;
  std::set<Key> held_, late_, queries_, received_, used_;
  std::map<Key, std::vector<int64_t>> partials_;
};

TEST_CASE("every plan of random problems computes every allowed block exactly once") {
  const uint64_t seed = 7001;
  CAPTURE(seed);
  Rng rng(seed);
  for (int round = 0; round < 200; ++round) {
    const Problem problem = round < 150 ? RandomProblem(rng) : RandomSpans(rng);
    const AllowedBlocks allowed(problem);
    for (PlanKind kind : kPlanKinds) {
      const int stages = static_cast<int>(rng.Below(6));
      INFO("round " << round << ": " << Name(kind) << " in " << stages << " stages, "
                    << Describe(problem));
      const Plan plan = Build(kind, problem, stages);
      const absl::Status valid = plan.Validate();
      CAPTURE(valid.ToString());
      REQUIRE(valid.ok());
      Simulation simulation(plan, allowed);
      simulation.Run();
      if (kind == PlanKind::kGroupCast) REQUIRE(simulation.unread_pages() == 0);

      int64_t sent = plan.BytesSent(kCaller), received = plan.BytesReceived(kCaller);
      for (int rank = 0; rank < plan.world(); ++rank) {
        sent += plan.BytesSent(rank);
        received += plan.BytesReceived(rank);
      }
      REQUIRE(sent == plan.BytesTotal());
      REQUIRE(received == plan.BytesTotal());
      if (plan.world() == 1 && problem.home == Home::kOwners) REQUIRE(plan.BytesTotal() == 0);
    }
  }
}

TEST_CASE("a ring moves the KV exactly world - 1 times and nothing else") {
  for (int world : {1, 2, 3, 4, 7, 64}) {
    for (int64_t tokens : {1, 63, 64, 65, 1000, 5000}) {
      for (const char* spec : {"zigzag", "contiguous", "striped", "block-cyclic:3"}) {
        Problem problem =
            MakeProblem(tokens, tokens, 4, 2, world, "causal", *PartitionSpec::Parse(spec));
        problem.v_head_dim = 32;
        CAPTURE(world, tokens, spec);
        const int64_t kv_bytes = tokens * 2 * (64 + 32) * 2;
        CHECK(Build(PlanKind::kRing, problem).BytesTotal() == (world - 1) * kv_bytes);
        problem.v_is_k_prefix = true;
        CHECK(Build(PlanKind::kRing, problem).BytesTotal() == (world - 1) * tokens * 2 * 64 * 2);
      }
    }
  }
}

TEST_CASE("bytes are exact where blocks are cut short") {
  // 130 tokens: blocks of 64, 64 and 2; the queries are the last 70: 4 + 64 + 2.
  const Problem problem = MakeProblem(70, 130, 2, 1, 1, "causal");
  CHECK(problem.Rows(BlockSet::Range(0, 3)) == 70);
  CHECK(problem.Rows(BlockSet::Range(0, 1)) == 4);
  CHECK(problem.Rows(BlockSet::Range(2, 1)) == 2);
  const Plan plan(PlanKind::kRing, problem, {});
  CHECK(plan.Bytes({Transfer::Kind::kQuery, 0, 1, {0, 2}, BlockSet::Range(0, 1)}) ==
        4 * 2 * 64 * 2);
  CHECK(plan.Bytes({Transfer::Kind::kKv, 0, 1, {0, 1}, BlockSet::Range(1, 2)}) == 66 * 128 * 2);
  CHECK(plan.Bytes({Transfer::Kind::kPartial, 0, 1, {1, 1}, BlockSet::Range(1, 2)}) == 66 * 65 * 4);
}

TEST_CASE("a head plan leaves pages at home that its head never reads") {
  // One query block sees, by head, every fourth block and the last; a quarter of the KV moves.
  const Problem problem = MakeProblem(64, 64 * 64, 4, 4, 4, "s2(64,1,4)");
  const Plan plan = Build(PlanKind::kHeads, problem);
  int64_t pages = 0;
  for (const Transfer& t : plan.rounds()[0].transfers) {
    if (t.kind == Transfer::Kind::kKv) pages += t.heads.count * t.blocks.size();
  }
  CHECK(pages <= 4 * (16 + 1));
  CHECK(pages >= 4 * 12 - 4);
}

TEST_CASE("decode by pass-q sends queries only where something is seen") {
  const int64_t tokens = 64 * 64;
  Problem problem =
      MakeProblem(1, tokens, 4, 4, 4, "window(64)", {PartitionKind::kContiguous, 1}, Home::kCaller);
  const Plan plan = Build(PlanKind::kPassQ, problem);
  CHECK(plan.BytesReceived(3) == 4 * 64 * 2);
  CHECK(plan.BytesSent(3) == 4 * 65 * 4);
  CHECK(plan.BytesTotal() == plan.BytesReceived(3) + plan.BytesSent(3));
}

TEST_CASE("many partials come home over a tree") {
  const Problem problem =
      MakeProblem(1, 64 * 640, 8, 8, 64, "causal", {PartitionKind::kBlockCyclic, 1}, Home::kCaller);
  const Plan plan = Build(PlanKind::kPassQ, problem);
  REQUIRE(plan.Validate().ok());
  CHECK(plan.rounds().size() == 2 + 2 + 1);
  CHECK(plan.BytesReceived(kCaller) == 4 * 8 * 65 * 4);
}

TEST_CASE("a caller takes in four partials of a head at most, each of which moved once before") {
  for (int world = 1; world <= 40; ++world) {
    CAPTURE(world);
    Problem problem = MakeProblem(1, 64 * 640, 8, 8, world, "causal",
                                  {PartitionKind::kBlockCyclic, 1}, Home::kCaller);
    const int64_t partial = 8 * 65 * 4;
    const Plan plan = Build(PlanKind::kPassQ, problem);
    REQUIRE(plan.Validate().ok());
    CHECK(plan.BytesReceived(kCaller) <= 4 * partial);
    int64_t sent = 0;
    for (int rank = 0; rank < world; ++rank) {
      CHECK(plan.BytesSent(rank) == partial);
      sent += plan.BytesSent(rank);
    }
    CHECK(sent == world * partial);
  }
}

TEST_CASE("ranks of different heads merge nothing for a caller") {
  Problem problem = MakeProblem(1, 64 * 640, 16, 16, 36, "causal", {PartitionKind::kBlockCyclic, 1},
                                Home::kCaller);
  const auto placed = [&](Placement placement) {
    problem.kv = Layout::Of(placement, 36, 16, 16, {PartitionKind::kBlockCyclic, 1}, 640);
    const Plan plan = Build(PlanKind::kPassQ, problem);
    REQUIRE(plan.Validate().ok());
    return plan;
  };
  // Six groups of heads by six of tokens: two of each six merge.
  const Plan mesh = placed(Placement::kMesh);
  CHECK(mesh.rounds().size() == 2 + 1 + 1);
  CHECK(mesh.BytesReceived(kCaller) == 3 * 16 * 65 * 4);
  const Plan heads = placed(Placement::kHeads);
  CHECK(heads.rounds().size() == 2 + 1);
  CHECK(heads.BytesReceived(kCaller) == 16 * 65 * 4);
}

TEST_CASE("a mesh of prime world is a ring") {
  const Problem problem = MakeProblem(5000, 5000, 4, 2, 7, "causal");
  CHECK(Build(PlanKind::kMesh, problem).BytesTotal() ==
        Build(PlanKind::kRing, problem).BytesTotal());
}

TEST_CASE("a problem that makes no sense is refused by its field") {
  const Problem good = MakeProblem(100, 100, 4, 2, 2, "causal");
  const auto refused = [&](void (*spoil)(Problem&), const char* field) {
    Problem bad = good;
    spoil(bad);
    const auto plan = BuildPlan(PlanKind::kRing, bad);
    REQUIRE(plan.status().code() == absl::StatusCode::kInvalidArgument);
    INFO(plan.status());
    CHECK(std::string(plan.status().message()).find(field) != std::string::npos);
  };
  refused([](Problem& p) { p.q_tokens = 0; }, "q_tokens: 0; ");
  refused([](Problem& p) { p.q_tokens = 101; }, "q_tokens: 101; ");
  refused([](Problem& p) { p.q_start = -1; }, "q_start: -1; ");
  refused([](Problem& p) { p.keys_end = 101; }, "keys_end: 101; ");
  refused([](Problem& p) { p.keys_end = 0; }, "keys_end: 0; ");
  refused([](Problem& p) { p.pattern = p.pattern.KeysFrom(100); }, "keys_begin: 100; ");
  refused([](Problem& p) { p.kv_tokens = int64_t{1} << 60; }, "kv_tokens");
  refused([](Problem& p) { p.heads = 5; }, "heads: 5; ");
  refused([](Problem& p) { p.kv_heads = 0; }, "kv_heads: 0; ");
  refused([](Problem& p) { p.head_dim = 0; }, "head_dim: 0; ");
  refused([](Problem& p) { p.v_head_dim = -8; }, "v_head_dim: -8; ");
  refused([](Problem& p) { p.kv_heads = 1; }, "pattern");
  refused([](Problem& p) { p.heads = 8; }, "layout");
  refused([](Problem& p) { p.kv_tokens = 200; }, "layout: blocks 0 to 2");
  refused(
      [](Problem& p) {
        p.v_is_k_prefix = true;
        p.v_head_dim = 72;
      },
      "v_head_dim: 72; ");
}

TEST_CASE("plan names round trip") {
  for (PlanKind kind : kPlanKinds) CHECK(*ParsePlanKind(Name(kind)) == kind);
  CHECK(ParsePlanKind("rings").status().code() == absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace annulus
