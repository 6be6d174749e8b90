// Who computes what under group-cast: balance, at no more bytes than balance needs.
#include "sharding/assign.h"
#include "absl/strings/str_cat.h"

#include <algorithm>
#include <numeric>

#include "sharding/planner.h"
#include "tests/sharding/random_problem.h"

namespace annulus {
namespace {

// What each rank computes and reads under group-cast, counted straight from the row table.
struct Shares {
  std::vector<int64_t> work;  // by rank
  int64_t unit = 0;           // the most work that one query block has under one KV head
  int64_t kv_bytes = 0;       // pages that must come from other ranks
  int64_t row_bytes = 0;      // queries and answers of rows that are not at home
};

int64_t BytesPerToken(const Problem& problem) {
  return (problem.head_dim + (problem.v_is_k_prefix ? 0 : problem.v_head_dim)) *
         static_cast<int64_t>(SizeOf(problem.dtype));
}

int64_t RowBytes(const Problem& problem, const BlockSet& rows) {
  const int64_t row =
      problem.head_dim * static_cast<int64_t>(SizeOf(problem.dtype)) + (problem.v_head_dim + 1) * 4;
  return problem.Rows(rows) * problem.group() * row;
}

Shares SharesOf(const Problem& problem, const Assignment& assignment) {
  ThreadPool pool(1);
  const RowTable rows(problem, pool);
  Shares shares;
  for (int rank = 0; rank < problem.world(); ++rank) {
    int64_t work = 0;
    for (int head = 0; head < problem.kv_heads; ++head) {
      const BlockSet& mine = assignment[rank][head];
      for (int64_t q_block : mine.ToVector()) {
        const TokenRange queries{std::max(q_block * 64, problem.q_range().begin),
                                 std::min(q_block * 64 + 64, problem.q_range().end)};
        const int64_t unit =
            problem.pattern.CountPairs(head, queries, problem.keys().end).work * problem.group();
        shares.unit = std::max(shares.unit, unit);
        work += unit;
      }
      BlockSet read = BlocksRead(rows, rows.KvClass(head), mine);
      if (Contains(problem.kv.KvHeads(rank), head)) {
        read = read.Subtract(problem.HeldBlocks(rank));
      }
      shares.kv_bytes += read.TokenCount(problem.keys().end) * BytesPerToken(problem);
      shares.row_bytes += RowBytes(problem, mine.Subtract(problem.HomeRows(rank)));
    }
    shares.work.push_back(work);
  }
  return shares;
}

int64_t Sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

int64_t Most(const std::vector<int64_t>& values) {
  return *std::max_element(values.begin(), values.end());
}

Assignment AtHome(const Problem& problem) {
  Assignment rows;
  for (int rank = 0; rank < problem.world(); ++rank) {
    rows.emplace_back(static_cast<size_t>(problem.kv_heads), problem.HomeRows(rank));
  }
  return rows;
}

// Documents of very different lengths.
std::string UnevenDocs(Rng& rng, int64_t tokens) {
  std::string text = "docs(";
  while (tokens > 0) {
    const int64_t most = rng.Below(3) == 0 ? tokens : std::max<int64_t>(1, tokens / 8);
    const int64_t length = rng.Between(1, most);
    absl::StrAppend(&text, text.back() == '(' ? "" : ",", length);
    tokens -= length;
  }
  return text + ") & causal";
}

std::string UnevenPattern(Rng& rng, int kv_heads, int64_t tokens) {
  switch (rng.Below(4)) {
    case 0:
      return UnevenDocs(rng, tokens);
    case 1:
      return "s2(64,4,16,dense_heads=" + std::to_string(rng.Below(kv_heads + 1)) + ")";
    case 2:
      return "heads(0: causal & window(" + std::to_string(rng.Between(1, 2000)) + "); 1-" +
             std::to_string(kv_heads - 1) + ": " + UnevenDocs(rng, tokens) + ")";
    default:
      return RandomPattern(rng, kv_heads);
  }
}

TEST_CASE("random group-casts balance, and for no more than balance needs") {
  const uint64_t seed = 31337;
  CAPTURE(seed);
  Rng rng(seed);
  int moved = 0;
  for (int round = 0; round < 60; ++round) {
    const int worlds[] = {2, 3, 4, 7, 8};
    const int world = worlds[rng.Below(5)];
    const int kv_heads = static_cast<int>(rng.Between(2, 6));
    const int64_t tokens = world * 64 * 64 - rng.Between(0, 63);
    const Problem problem =
        MakeProblem(rng.Below(3) == 0 ? tokens / 2 : tokens, tokens, kv_heads * 2, kv_heads, world,
                    UnevenPattern(rng, kv_heads, tokens), RandomSpec(rng));
    INFO("round " << round << ": " << Describe(problem));
    ThreadPool pool(1);
    const RowTable rows(problem, pool);
    const Shares home = SharesOf(problem, AtHome(problem));
    const Assignment assignment = AssignRows(problem, rows);
    const Shares shares = SharesOf(problem, assignment);
    const int64_t total = Sum(home.work);
    REQUIRE(Sum(shares.work) == total);
    const double limit = kImbalanceMax * static_cast<double>(total) / world;

    const bool fits = static_cast<double>(shares.unit) < 0.05 * static_cast<double>(total) / world;
    if (fits) REQUIRE(static_cast<double>(Most(shares.work)) <= limit);
    REQUIRE(Most(shares.work) <= Most(home.work));
    if (static_cast<double>(Most(home.work)) <= limit) {
      for (int rank = 0; rank < world; ++rank) {
        for (const BlockSet& mine : assignment[rank]) {
          REQUIRE(mine.SameBlocks(problem.HomeRows(rank)));
        }
      }
      continue;
    }
    ++moved;
    // Who gives keeps what the limit allows, to within one block of one head.
    for (int rank = 0; rank < world; ++rank) {
      const double had = static_cast<double>(home.work[rank]);
      REQUIRE(static_cast<double>(shares.work[rank] + shares.unit) >= std::min(had, limit) - 1);
    }
    // What balance may cost: the rows that move, and the pages that they read, once for each
    // receiver and head.
    int64_t pages_bytes = 0;
    for (int rank = 0; rank < world; ++rank) {
      for (int head = 0; head < kv_heads; ++head) {
        const BlockSet come = assignment[rank][head].Subtract(problem.HomeRows(rank));
        const BlockSet read = BlocksRead(rows, rows.KvClass(head), come);
        pages_bytes += read.TokenCount(tokens) * BytesPerToken(problem);
      }
    }
    REQUIRE(shares.kv_bytes <= home.kv_bytes + pages_bytes);
    const int stages = static_cast<int>(rng.Below(5));
    const Plan plan = *BuildPlan(PlanKind::kGroupCast, problem, stages);
    CAPTURE(stages, plan.Validate().ToString());
    REQUIRE(plan.Validate().ok());
    REQUIRE(plan.BytesTotal() == shares.kv_bytes + shares.row_bytes);
  }
  CHECK(moved > 10);
}

// max/mean work and bytes as a share of what a full ring moves, (W − 1)·KV.
struct Outcome {
  double imbalance = 0;
  double ring_share = 0;
};

Outcome GroupCastOf(int world, const std::string& pattern) {
  const int64_t tokens = int64_t{64} * 64 * world;
  const Problem problem = MakeProblem(tokens, tokens, 16, 8, world, pattern);
  const Plan plan = *BuildPlan(PlanKind::kGroupCast, problem);
  const double ring =
      static_cast<double>((world - 1) * tokens * problem.kv_heads * BytesPerToken(problem));
  return {Cost(plan, ClusterModel{}).imbalance, static_cast<double>(plan.BytesTotal()) / ring};
}

TEST_CASE("at 64 blocks a rank every kind of work balances") {
  for (int world : {2, 3, 4, 7, 8, 16, 32, 64}) {
    const int64_t tokens = int64_t{64} * 64 * world;
    const std::string docs =
        absl::StrCat("docs(", tokens / 2, ",", tokens / 16, ",", tokens / 64, ",", 77, ",",
                     tokens - tokens / 2 - tokens / 16 - tokens / 64 - 77, ") & causal");
    for (const std::string& pattern :
         {std::string("causal"), std::string("s2(64,16,16)"), std::string("s2(64,4,16)"),
          std::string("s2(64,16,16,dense_heads=2)"),
          std::string("heads(0-5: causal & window(4096); 6-7: causal)"), docs}) {
      CAPTURE(world, pattern);
      CHECK(GroupCastOf(world, pattern).imbalance <= kImbalanceMax);
    }
  }
}

TEST_CASE("a sparse group-cast moves a small part of what a ring moves") {
  CHECK(GroupCastOf(64, "s2(64,16,16)").ring_share <= 0.08);
  CHECK(GroupCastOf(4, "s2(64,4,16)").ring_share <= 0.15);
}

TEST_CASE("work that balances within itself stays at home, whatever moved elsewhere") {
  // One long document at the end; the window's heads are even.
  const int64_t tokens = 64 * 64 * 8;
  const Problem problem =
      MakeProblem(tokens, tokens, 4, 4, 8,
                  absl::StrCat("docs(", tokens - 4096 * 3, ",", 4096 * 3, ") & causal"),
                  {PartitionKind::kContiguous, 1});
  ThreadPool pool(1);
  const RowTable rows(problem, pool);
  const Assignment assignment = AssignRows(problem, rows);
  const Shares shares = SharesOf(problem, assignment);
  CHECK(static_cast<double>(Most(shares.work)) <= kImbalanceMax * Sum(shares.work) / 8);
  // The ranks with little work, at the documents' beginnings, give nothing away.
  for (int head = 0; head < 4; ++head) {
    CHECK(problem.HomeRows(0).Subtract(assignment[0][head]).empty());
  }
}

}  // namespace
}  // namespace annulus
