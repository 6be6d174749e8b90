// The algebra of block sets against std::set, and its closed forms where listing would not end.
#include <algorithm>
#include <set>

#include "attention/block_set.h"
#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

using Plain = std::set<int64_t>;

BlockRun RandomRun(Rng* rng, int64_t span) {
  const int64_t count = rng->Between(1, rng->Below(2) == 0 ? 3 : 30);
  return {rng->Between(0, span), count, count == 1 ? 1 : rng->Between(1, 12)};
}

Plain Listed(const std::vector<BlockRun>& runs) {
  Plain blocks;
  for (const BlockRun& run : runs) {
    for (int64_t i = 0; i < run.count; ++i) blocks.insert(run.first + i * run.step);
  }
  return blocks;
}

std::vector<BlockRun> RandomRuns(Rng* rng, int64_t span) {
  std::vector<BlockRun> runs;
  const int64_t many = rng->Below(20) == 0 ? 200 : 6;
  for (int64_t n = rng->Between(0, many); n > 0; --n) runs.push_back(RandomRun(rng, span));
  return runs;
}

// The set holds exactly `expected`, in runs that are disjoint, ordered and in their plain form.
void CheckIs(const BlockSet& set, const Plain& expected) {
  CAPTURE(set.ToString());
  REQUIRE(set.ToVector() == std::vector<int64_t>(expected.begin(), expected.end()));
  REQUIRE(set.size() == static_cast<int64_t>(expected.size()));  // disjoint: none counted twice
  REQUIRE(set.empty() == expected.empty());
  REQUIRE(std::is_sorted(set.runs().begin(), set.runs().end(),
                         [](const BlockRun& a, const BlockRun& b) { return a.first < b.first; }));
  for (const BlockRun& run : set.runs()) {
    REQUIRE(run.count >= 1);
    REQUIRE((run.count > 1 ? run.step >= 1 : run.step == 1));
  }
}

TEST_CASE("block set: the algebra is that of sets") {
  for (uint64_t seed = 1; seed <= 3000; ++seed) {
    Rng rng(seed);
    const int64_t span = rng.Below(2) == 0 ? 40 : 400;
    const std::vector<BlockRun> a_runs = RandomRuns(&rng, span), b_runs = RandomRuns(&rng, span);
    const BlockSet a = BlockSet::FromRuns(a_runs), b = BlockSet::FromRuns(b_runs);
    const Plain a_set = Listed(a_runs), b_set = Listed(b_runs);
    CAPTURE(seed, a.ToString(), b.ToString());
    CheckIs(a, a_set);
    Plain united = a_set, common, rest;
    united.insert(b_set.begin(), b_set.end());
    for (const int64_t block : a_set) (b_set.count(block) > 0 ? common : rest).insert(block);
    CheckIs(a.Union(b), united);
    CheckIs(a.Intersect(b), common);
    CheckIs(a.Subtract(b), rest);
    REQUIRE(a.SameBlocks(b) == (a_set == b_set));
    REQUIRE(a.SameBlocks(BlockSet::FromBlocks(a.ToVector())));
    const int64_t block = rng.Between(0, span), context = rng.Between(0, span * kBlockTokens);
    REQUIRE(a.Contains(block) == (a_set.count(block) > 0));
    int64_t tokens = 0;
    for (const int64_t i : a_set) {
      tokens += std::clamp<int64_t>(context - i * kBlockTokens, 0, kBlockTokens);
    }
    REQUIRE(a.TokenCount(context) == tokens);
  }
}

TEST_CASE("block runs: what two have in common is a run") {
  for (uint64_t seed = 1; seed <= 20000; ++seed) {
    Rng rng(seed);
    const BlockRun a = RandomRun(&rng, 60), b = RandomRun(&rng, 60);
    CAPTURE(seed, a.first, a.count, a.step, b.first, b.count, b.step);
    Plain common;
    for (const int64_t block : Listed({a})) {
      if (b.Contains(block)) common.insert(block);
    }
    const BlockRun both = Intersect(a, b);
    REQUIRE(both.count == static_cast<int64_t>(common.size()));
    if (both.count > 0) REQUIRE(Listed({both}) == common);
  }
}

TEST_CASE("block runs: steps beyond 32 bits meet where arithmetic says") {
  const int64_t a_step = 4294967311, b_step = 4294967357;  // primes
  const BlockRun a{5, int64_t{1} << 28, a_step}, b{5, int64_t{1} << 28, b_step};
  REQUIRE(Intersect(a, b) == BlockRun{5, 1, 1});
  REQUIRE(Intersect(a, {6, int64_t{1} << 28, b_step}).count == 0);
}

TEST_CASE("block set: a long context costs runs, not blocks") {
  const int64_t blocks = int64_t{1} << 40;
  const BlockSet all = BlockSet::Range(0, blocks);
  const BlockSet stride = BlockSet::FromRuns({{3, blocks / 16, 16}});
  const BlockSet rest = all.Subtract(stride);
  REQUIRE(rest.size() == blocks - blocks / 16);
  REQUIRE(rest.runs().size() <= 20);
  REQUIRE(rest.Union(stride).SameBlocks(all));
  REQUIRE(rest.Intersect(stride).empty());
  REQUIRE(stride.TokenCount(blocks * kBlockTokens) == blocks / 16 * kBlockTokens);
}

TEST_CASE("block set: text and empty sets") {
  REQUIRE(BlockSet().ToString() == "[]");
  REQUIRE(BlockSet::Range(4, 0).empty());
  REQUIRE(BlockSet::FromRuns({{0, 64, 1}, {100, 51, 16}}).ToString() ==
          "[0..63] [100..900 step 16]");
  REQUIRE(BlockSet::FromRuns({{7, 1, 1}}).ToString() == "[7]");
  REQUIRE(BlockSet::FromRuns({{0, 0, 1}}).SameBlocks(BlockSet()));
  REQUIRE(BlocksOf(0) == 0);
  REQUIRE(BlocksOf(64) == 1);
  REQUIRE(BlocksOf(65) == 2);
}

}  // namespace
}  // namespace annulus
