// Random patterns: rows, masks and counts against the definition, pair by pair.
#include <bit>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/types/optional.h"
#include "attention/pattern.h"
#include "base/rng.h"
#include "tests/attention/pattern_random.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr int kPatterns = 3000;

// What one row should be, from the definition: the cells with their allowed and existing pairs.
struct Cell {
  int64_t allowed = 0;
  int64_t existing = 0;
};
using Cells = std::map<int64_t, Cell>;

Cells CellsOf(const PairRule& allows, int head, TokenRange q, TokenRange keys) {
  Cells cells;
  for (int64_t k = keys.begin; k < keys.end; ++k) {
    Cell& cell = cells[k / kBlockTokens];
    for (int64_t i = q.begin; i < q.end; ++i) {
      cell.allowed += allows(head, i, k);
      ++cell.existing;
    }
  }
  return cells;
}

// Each allowed cell in one run, full ones truly full: a kernel reads those from the block's begin.
void CheckRow(const Pattern& pattern, const Cells& cells, int head, TokenRange q,
              int64_t kv_tokens) {
  std::vector<TileRun> tiles = {{{7, 7, 7}, true}};
  pattern.Row(head, q, kv_tokens, &tiles);
  std::set<int64_t> seen;
  int64_t before = -1;
  for (const TileRun& tile : tiles) {
    CAPTURE(tile.blocks.first, tile.blocks.count, tile.blocks.step, tile.full);
    REQUIRE(tile.blocks.count >= 1);
    REQUIRE(tile.blocks.step >= 1);
    REQUIRE((tile.blocks.count > 1 || tile.blocks.step == 1));
    REQUIRE(tile.blocks.first > before);
    before = tile.blocks.first;
    for (int64_t i = 0; i < tile.blocks.count; ++i) {
      const int64_t block = tile.blocks.first + i * tile.blocks.step;
      CAPTURE(block);
      REQUIRE(seen.insert(block).second);
      REQUIRE(cells.count(block) == 1);
      REQUIRE(cells.at(block).allowed > 0);
      if (!tile.full) continue;
      const int64_t keys = std::min(kv_tokens - block * kBlockTokens, kBlockTokens);
      REQUIRE(cells.at(block).allowed == q.size() * keys);
    }
  }
  for (const auto& [block, cell] : cells) {
    CAPTURE(block);
    if (cell.allowed > 0) REQUIRE(seen.count(block) == 1);
  }
}

void CheckMask(const Pattern& pattern, const PairRule& allows, int head, int64_t q_block,
               int64_t k_block) {
  uint64_t mask[64];
  std::fill(std::begin(mask), std::end(mask), 0x5a5a5a5a5a5a5a5au);
  pattern.CellMask(head, q_block, k_block, mask);
  for (int64_t r = 0; r < kBlockTokens; ++r) {
    uint64_t expected = 0;
    for (int64_t k = 0; k < kBlockTokens; ++k) {
      const bool allowed = allows(head, 64 * q_block + r, 64 * k_block + k);
      expected |= static_cast<uint64_t>(allowed) << k;
    }
    CAPTURE(q_block, k_block, r);
    REQUIRE(mask[r] == expected);
  }
}

// The random pattern parsed, or nothing if it is over the limit of terms, which few may be.
absl::optional<Pattern> ParseRandom(const std::string& text, int kv_heads,
                                    const std::vector<NamedList>& lists) {
  absl::StatusOr<Pattern> pattern = Pattern::Parse(text, kv_heads);
  if (pattern.ok()) pattern = pattern->Bind(lists, kv_heads);
  if (pattern.ok()) return *std::move(pattern);
  INFO(pattern.status().ToString());
  REQUIRE(absl::StrContains(pattern.status().message(), "terms after expansion"));
  return absl::nullopt;
}

// The rows of all queries as bands: every allowed cell in one of them.
void CheckStretches(const Pattern& pattern, const std::map<int64_t, Cells>& rows, int head,
                    TokenRange q, int64_t kv_tokens) {
  std::vector<RowStretch> stretches = {{1, 2, {}}};
  if (!pattern.Stretches(head, q, kv_tokens, &stretches)) return;
  std::set<std::pair<int64_t, int64_t>> seen;
  int64_t before = 0;
  for (const RowStretch& stretch : stretches) {
    REQUIRE(stretch.q_begin >= before);
    REQUIRE(stretch.q_begin < stretch.q_end);
    before = stretch.q_end;
    for (int64_t row = stretch.q_begin; row < stretch.q_end; ++row) {
      for (const RowBand& band : stretch.bands) {
        CAPTURE(row, band.begin, band.begin_moves, band.end, band.end_moves, band.step);
        REQUIRE(band.Begin(row) < band.End(row));
        const BlockRun run = band.Row(row);
        for (int64_t i = 0; i < run.count; ++i) {
          REQUIRE(seen.insert({row, run.first + i * run.step}).second);
        }
      }
    }
  }
  for (const auto& [row, cells] : rows) {
    for (const auto& [block, cell] : cells) {
      CAPTURE(row, block);
      REQUIRE(seen.erase({row, block}) == (cell.allowed > 0 ? 1 : 0));
    }
  }
  REQUIRE(seen.empty());
}

// Returns whether the pattern was within the limits.
bool CheckPattern(uint64_t seed) {
  Rng rng(seed);
  const int kv_heads = static_cast<int>(rng.Between(1, 5));
  const int64_t kv_tokens = rng.Below(4) == 0 ? rng.Between(1, 70) : rng.Between(65, 900);
  PatternMaker maker(rng.Next(), kv_heads, kv_tokens);
  if (seed % 2 == 0) maker.WithLists();
  RandomPattern random = maker.Make(static_cast<int>(rng.Between(0, 3)));
  const int64_t first_key = rng.Below(3) == 0 ? rng.Between(1, kv_tokens - 1) : 0;
  CAPTURE(seed, random.text, kv_heads, kv_tokens, first_key);
  absl::optional<Pattern> pattern = ParseRandom(random.text, kv_heads, maker.lists());
  if (!pattern.has_value()) return false;
  pattern = pattern->KeysFrom(first_key);
  random.allows = [all = random.allows, first_key](int64_t h, int64_t q, int64_t k) {
    return k >= first_key && all(h, q, k);
  };
  REQUIRE(pattern->CheckTokens(kv_tokens).ok());
  const int head = static_cast<int>(rng.Below(kv_heads));
  const int rule = pattern->HeadClass(head);
  REQUIRE(rule <= head);
  // Queries may lie beyond the keys.
  const int64_t tokens = rng.Below(3) == 0 ? kv_tokens + rng.Between(1, 200) : kv_tokens;
  const int64_t begin = rng.Between(0, tokens - 1);
  const TokenRange q{begin, rng.Between(begin + 1, tokens)};
  CAPTURE(head, rule, q.begin, q.end);
  PairCount expected;
  std::map<int64_t, Cells> rows;
  for (int64_t at = q.begin; at < q.end;) {
    const TokenRange row{at, std::min(q.end, (at / kBlockTokens + 1) * kBlockTokens)};
    CAPTURE(row.begin, row.end);
    const Cells& cells = rows[at / kBlockTokens] =
        CellsOf(random.allows, head, row, {first_key, kv_tokens});
    CheckRow(*pattern, cells, head, row, kv_tokens);
    CheckRow(*pattern, cells, rule, row, kv_tokens);
    for (const auto& [block, cell] : cells) {
      expected.visited += cell.allowed;
      if (cell.allowed > 0) expected.work += cell.existing;
    }
    at = row.end;
  }
  CheckStretches(*pattern, rows, head, q, kv_tokens);
  const PairCount count = pattern->CountPairs(head, q, kv_tokens);
  REQUIRE(count.visited == expected.visited);
  REQUIRE(count.work == expected.work);
  const int64_t blocks = BlocksOf(kv_tokens);
  for (int i = 0; i < 4; ++i) {
    CheckMask(*pattern, random.allows, head, rng.Between(0, blocks), rng.Between(0, blocks));
  }
  for (int i = 0; i < 50; ++i) {
    const int64_t query = rng.Between(0, kv_tokens + 99), key = rng.Between(0, kv_tokens + 99);
    CAPTURE(query, key);
    REQUIRE(pattern->Allows(head, query, key) == random.allows(head, query, key));
  }
  return true;
}

// No later query sees an evicted key.
void CheckEvictable(uint64_t seed) {
  Rng rng(seed);
  const int64_t tokens = rng.Between(100, 700);
  PatternMaker maker(rng.Next(), 2, tokens);
  if (seed % 2 == 0) maker.WithLists();
  const RandomPattern random = maker.Make(2);
  CAPTURE(seed, random.text, tokens);
  const absl::optional<Pattern> pattern = ParseRandom(random.text, 2, maker.lists());
  if (!pattern.has_value()) return;
  const int64_t next_q = rng.Between(0, tokens);
  const BlockSet evictable = pattern->Evictable(1, next_q, tokens);
  CAPTURE(next_q, evictable.ToString());
  for (const int64_t block : evictable.ToVector()) {
    REQUIRE(block < BlocksOf(tokens));
    for (int64_t k = block * kBlockTokens; k < (block + 1) * kBlockTokens; ++k) {
      for (int64_t q = next_q; q < next_q + 600; ++q) {
        if (random.allows(1, q, k)) FAIL("query " << q << " needs key " << k);
      }
    }
  }
}

// The keys that some head lets some query see, and nothing else.
void CheckCoverage(uint64_t seed) {
  Rng rng(seed);
  const int kv_heads = static_cast<int>(rng.Between(1, 4));
  const int64_t tokens = rng.Between(1, 600);
  PatternMaker maker(rng.Next(), kv_heads, tokens);
  if (seed % 2 == 0) maker.WithLists();
  const RandomPattern random = maker.Make(2);
  const absl::optional<Pattern> pattern = ParseRandom(random.text, kv_heads, maker.lists());
  if (!pattern.has_value()) return;
  const int64_t begin = rng.Between(0, tokens - 1);
  const TokenRange q{begin, rng.Between(begin + 1, std::min(tokens, begin + 150))};
  const int64_t first_key = rng.Below(3) == 0 ? rng.Between(0, tokens - 1) : 0;
  CAPTURE(seed, random.text, kv_heads, tokens, q.begin, q.end, first_key);
  int64_t seen = 0;
  for (int64_t k = first_key; k < tokens; ++k) {
    bool sees = false;
    for (int head = 0; head < kv_heads && !sees; ++head) {
      for (int64_t i = q.begin; i < q.end && !sees; ++i) sees = random.allows(head, i, k);
    }
    seen += sees;
  }
  const PatternCoverage coverage = Coverage(pattern->KeysFrom(first_key), q, tokens);
  REQUIRE(coverage.covered ==
          Approx(static_cast<double>(seen) / static_cast<double>(tokens - first_key)));
  double kept = 0;
  for (int head = 0; head < kv_heads; ++head) {
    const int64_t evicted = pattern->Evictable(head, tokens, tokens).size();
    kept += 1.0 - static_cast<double>(evicted) / static_cast<double>(BlocksOf(tokens));
  }
  REQUIRE(coverage.kept_kv == Approx(kept / kv_heads));
}

// A long context, where progressions are long and meet far out: sampled cells of sampled rows.
void CheckLongRows(const std::string& text, uint64_t seed) {
  Rng rng(seed);
  const int64_t kv_tokens = rng.Between(100'000, 10'000'000);
  const absl::StatusOr<Pattern> pattern = Pattern::Parse(text, 3);
  REQUIRE(pattern.ok());
  const int64_t q_block = rng.Between(0, kv_tokens / kBlockTokens - 1);
  const TokenRange q{q_block * kBlockTokens, (q_block + 1) * kBlockTokens};
  std::vector<TileRun> tiles;
  pattern->Row(1, q, kv_tokens, &tiles);
  CAPTURE(text, seed, kv_tokens, q_block);
  for (int i = 0; i < 60; ++i) {
    int64_t block = rng.Between(0, BlocksOf(kv_tokens) - 1);
    if (i % 3 != 0) {  // in or beside a run
      const BlockRun& run = tiles[rng.Below(tiles.size())].blocks;
      block = run.first + rng.Between(0, run.count - 1) * run.step + rng.Between(-1, 1);
      block = std::clamp<int64_t>(block, 0, BlocksOf(kv_tokens) - 1);
    }
    int64_t allowed = 0, existing = 0, holding = 0, full = 0;
    for (int64_t k = block * kBlockTokens; k < (block + 1) * kBlockTokens && k < kv_tokens; ++k) {
      for (int64_t at = q.begin; at < q.end; ++at) allowed += pattern->Allows(1, at, k);
      existing += q.size();
    }
    for (const TileRun& tile : tiles) {
      if (!tile.blocks.Contains(block)) continue;
      ++holding;
      full += tile.full;
    }
    CAPTURE(block);
    REQUIRE(holding == (allowed > 0 ? 1 : 0));
    REQUIRE((full == 0 || allowed == existing));
  }
}

TEST_CASE("long contexts: rows are the definition") {
  for (const char* text :
       {"causal & (window(4096) | sink(64))", "s2(64,16,16)", "s2(16,16,16) | s2(16,4,12)",
        "s2(1000,4,3)", "s2(1024,4,16)", "power(16,5,1)", "s2(64,16,16) | power(256,5,1)",
        "s2(64,4,1009) | s2(64,4,1013)", "s2(17,2,2) & s2(19,2,3)", "s2(100,3,7) & s2(64,2,5)",
        "s2(64,1,100000) & s2(48,1,70001) | window(1)"}) {
    for (uint64_t seed = 1; seed <= 10; ++seed) CheckLongRows(text, seed);
  }
}

TEST_CASE("random patterns: rows, masks and counts are the definition") {
  int checked = 0;
  for (uint64_t seed = 1; seed <= kPatterns; ++seed) checked += CheckPattern(seed);
  REQUIRE(checked > kPatterns * 95 / 100);
}

TEST_CASE("random patterns: no query needs what was evictable") {
  for (uint64_t seed = 1; seed <= 150; ++seed) CheckEvictable(seed);
}

TEST_CASE("random patterns: coverage counts the keys seen") {
  for (uint64_t seed = 1; seed <= 300; ++seed) CheckCoverage(seed);
}

}  // namespace
}  // namespace annulus
