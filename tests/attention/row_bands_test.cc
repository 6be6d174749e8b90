// Sums over bands in closed form, against walking every block.
#include <set>

#include "attention/ranges.h"
#include "attention/row_bands.h"
#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

BlockRun RandomRun(Rng& rng, int64_t first_max, int64_t count_max) {
  const int64_t count = rng.Between(1, count_max);
  const int64_t step = count == 1 ? 1 : rng.Below(2) == 0 ? 1 : rng.Between(2, 9);
  return {rng.Between(0, first_max), count, step};
}

// A band and the query blocks for which its ends are in order and not below block 0.
std::pair<RowBand, TokenRange> RandomBand(Rng& rng) {
  RowBand band;
  band.begin_moves = rng.Below(2) == 0;
  band.end_moves = band.begin_moves ? rng.Below(3) > 0 : rng.Below(2) == 0;
  const TokenRange q{rng.Between(0, 60), rng.Between(61, 120)};
  band.begin = band.begin_moves ? rng.Between(-q.begin, 10) : rng.Between(0, 40);
  const int64_t longest = band.Begin(band.end_moves ? q.begin : q.end - 1);
  const int64_t end = longest + rng.Between(1, 50);
  band.end = band.end_moves ? end - q.begin : end;
  band.step = rng.Below(2) == 0 ? 1 : rng.Between(2, 12);
  band.first = rng.Between(0, band.step - 1);
  return {band, q};
}

TEST_CASE("bands: what is seen, and by whom, is what every row says") {
  for (uint64_t seed = 1; seed <= 20000; ++seed) {
    Rng rng(seed);
    const auto [band, q] = RandomBand(rng);
    const BlockRun some = RandomRun(rng, 130, 40);
    const BlockRun rows = Intersect(some, {q.begin, q.size(), 1});
    const BlockRun kv = RandomRun(rng, 150, 60);
    CAPTURE(seed, band.begin, band.begin_moves, band.end, band.end_moves, band.first, band.step);
    CAPTURE(q.begin, q.end, rows.first, rows.count, rows.step, kv.first, kv.count, kv.step);
    int64_t pairs = 0;
    std::set<int64_t> seen, seeing;
    for (int64_t row = q.begin; row < q.end; ++row) {
      for (int64_t k = band.Begin(row); k < band.End(row); ++k) {
        if ((k - band.first) % band.step != 0) continue;
        if (kv.Contains(k)) seeing.insert(row);
        if (rows.count == 0 || !rows.Contains(row)) continue;
        seen.insert(k);
        pairs += kv.Contains(k);
      }
    }
    if (rows.count > 0) REQUIRE(BlocksSeen(band, rows, kv) == pairs);
    std::vector<BlockRun> runs;
    AppendSeen(band, rows, &runs);
    const std::vector<int64_t> blocks = BlockSet::FromRuns(runs).ToVector();
    REQUIRE(blocks == std::vector<int64_t>(seen.begin(), seen.end()));
    runs.clear();
    AppendSeeing(band, q.begin, q.end, kv, &runs);
    const std::vector<int64_t> queries = BlockSet::FromRuns(runs).ToVector();
    REQUIRE(queries == std::vector<int64_t>(seeing.begin(), seeing.end()));
  }
}

TEST_CASE("bands: long ones are summed without a walk") {
  // Causal: Σ (q + 1) over 2^20 query blocks.
  const RowBand causal{0, 1, false, true, 0, 1};
  const int64_t n = int64_t{1} << 20;
  REQUIRE(BlocksSeen(causal, {0, n, 1}, {0, n, 1}) == n * (n + 1) / 2);
  // Of each row every 64th block.
  const RowBand comb{0, 1, false, true, 3, 64};
  REQUIRE(BlocksSeen(comb, {0, n, 1}, {0, n, 1}) == (n / 64) * (n / 64 - 1) / 2 * 64 + n / 64 * 61);
}

}  // namespace
}  // namespace annulus
