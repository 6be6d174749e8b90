// Patterns: each primitive's meaning, and the promises that random patterns cannot show: which
// blocks are full, what may be evicted, how long contexts stay cheap.
#include "attention/pattern.h"

#include "tests/attention/pattern_random.h"
#include "tests/catch.h"

namespace annulus {
namespace {

Pattern Parsed(const std::string& text, int kv_heads) {
  absl::StatusOr<Pattern> pattern = Pattern::Parse(text, kv_heads);
  INFO(text << ": " << pattern.status().ToString());
  REQUIRE(pattern.ok());
  return *std::move(pattern);
}

void CheckMeaning(const std::string& text, int kv_heads, const PairRule& expected) {
  const Pattern pattern = Parsed(text, kv_heads);
  for (int head = 0; head < kv_heads; ++head) {
    for (int64_t q = 0; q < 500; q += 3) {
      for (int64_t k = 0; k < 500; ++k) {
        if (pattern.Allows(head, q, k) == expected(head, q, k)) continue;
        FAIL(text << " head " << head << " query " << q << " key " << k);
      }
    }
  }
}

std::string RowText(const Pattern& pattern, int head, TokenRange q, int64_t kv_tokens) {
  std::vector<TileRun> tiles;
  pattern.Row(head, q, kv_tokens, &tiles);
  std::string text;
  for (const TileRun& tile : tiles) {
    text += (tile.full ? "full" : "part") + BlockSet::FromRuns({tile.blocks}).ToString() + " ";
  }
  return text;
}

TEST_CASE("pattern: primitives mean what the definitions say") {
  CheckMeaning("full", 1, [](int64_t, int64_t, int64_t) { return true; });
  CheckMeaning("causal", 2, CausalRule());
  CheckMeaning("window(1)", 1, [](int64_t, int64_t q, int64_t k) { return q == k; });
  CheckMeaning("window(100,7)", 1, WindowRule(100, 7));
  CheckMeaning("window(right=9223372036854775807, left=3)", 1, WindowRule(3, 1000));
  CheckMeaning("window(0)", 1, [](int64_t, int64_t, int64_t) { return false; });
  CheckMeaning("sink(4)", 1, SinkRule(4));
  CheckMeaning("docs(100,1,399)", 1, DocsRule({100, 1, 399}));
  CheckMeaning("s2(16,2,4)", 4, S2Rule(16, 2, 4, 0, 1, 0, 4));
  CheckMeaning("s2(16,2,8)", 2, S2Rule(16, 2, 8, 0, 4, 0, 2));
  CheckMeaning("s2(16,2,3)", 8, S2Rule(16, 2, 3, 0, 1, 0, 8));
  CheckMeaning("s2(20,1,5,2,3,7)", 4, S2Rule(20, 1, 5, 2, 3, 7, 4));
  CheckMeaning("s2(stride=5,block=20,local=1,step=0)", 4, S2Rule(20, 1, 5, 0, 0, 0, 4));
  CheckMeaning("power(16,3,1)", 1, PowerRule(16, 3, 1));
  CheckMeaning("power(8,0,0)", 1, PowerRule(8, 0, 0));
}

TEST_CASE("pattern: & binds tighter than |, parentheses bind tightest") {
  const PairRule window = WindowRule(9, 0), sink = SinkRule(5), full = WindowRule(600, 600);
  CheckMeaning("full | window(9) & sink(5)", 1, full);
  CheckMeaning("(full | window(9)) & sink(5)", 1, sink);
  CheckMeaning("((window(9)))", 1, window);
  CheckMeaning(
      "heads(0: causal; 1-2: full) & heads(2: sink(5); 0-1: full)", 3,
      [&](int64_t head, int64_t q, int64_t k) { return head == 0 ? q >= k : head == 1 || k < 5; });
}

TEST_CASE("pattern: whole blocks are found full") {
  const int64_t n = 1000;
  const TokenRange last{14 * 64, 15 * 64};
  REQUIRE(RowText(Parsed("full", 1), 0, last, n) == "full[0..15] ");
  REQUIRE(RowText(Parsed("causal", 1), 0, last, n) == "full[0..13] part[14] ");
  REQUIRE(RowText(Parsed("causal", 1), 0, {999, 1000}, n) == "full[0..15] ");
  REQUIRE(RowText(Parsed("window(128)", 1), 0, last, n) == "part[12] full[13] part[14] ");
  REQUIRE(RowText(Parsed("window(65) | sink(64)", 1), 0, last, n) == "full[0] part[13..14] ");
  REQUIRE(RowText(Parsed("s2(64,2,4)", 4), 0, last, n) == "full[0..12 step 4] full[13] part[14] ");
  REQUIRE(RowText(Parsed("s2(64,2,4)", 4), 1, last, n) == "full[3..11 step 4] full[13] part[14] ");
  // The window begins inside block 6 for all but the first query.
  REQUIRE(RowText(Parsed("window(513) & s2(64,1,2)", 1), 0, last, n) ==
          "part[6] full[8..12 step 2] part[14] ");
  REQUIRE(RowText(Parsed("s2(128,1,3)", 1), 0, last, n) ==
          "full[0..1] full[6..7] full[12..13] "
          "part[14] ");
  REQUIRE(RowText(Parsed("power(64,2,1)", 1), 0, last, n) ==
          "full[0] full[6] full[10] full[12..13] part[14] ");
  REQUIRE(RowText(Parsed("docs(640,360)", 1), 0, last, n) == "full[10..15] ");
  REQUIRE(RowText(Parsed("docs(640,360) & sink(640)", 1), 0, last, n).empty());
}

TEST_CASE("pattern: heads with one rule are one class") {
  const Pattern s2 = Parsed("s2(64,2,4,dense_heads=2)", 8);
  for (int head = 0; head < 6; ++head) REQUIRE(s2.HeadClass(head) == head % 4);
  REQUIRE(s2.HeadClass(6) == 6);
  REQUIRE(s2.HeadClass(7) == 6);
  REQUIRE(Parsed("s2(64,2,4,step=0) & causal", 8).HeadClass(7) == 0);
  REQUIRE(Parsed("heads(0: sink(4)|causal; 1: full; 2: sink(4)|causal)", 3).HeadClass(2) == 0);
}

TEST_CASE("pattern: documents must add up, and the last one has no end") {
  const Pattern docs = Parsed("causal & docs(100, 50)", 1);
  REQUIRE(docs.CheckTokens(150).ok());
  REQUIRE(docs.CheckTokens(151).message() ==
          "pattern: at 15: documents of 150 tokens in all; expected 151 tokens, as many as the "
          "context has");
  REQUIRE(absl::IsInvalidArgument(docs.CheckTokens(149)));
  REQUIRE(docs.Allows(0, 9000, 120));
  REQUIRE(Parsed("causal", 1).CheckTokens(7).ok());
}

TEST_CASE("pattern: what may be evicted") {
  const auto evictable = [](const std::string& text, int head) {
    return Parsed(text, 4).Evictable(head, 64 * 10, 64 * 10).ToString();
  };
  // Query block 10 sees blocks 9 and 10 as local; stride 4 keeps 3 and 7 for head 1.
  REQUIRE(evictable("s2(64,2,4)", 1) == "[0..2] [4..6] [8]");
  REQUIRE(evictable("s2(64,2,4,dense_heads=3)", 1) == "[]");
  REQUIRE(evictable("window(128)", 0) == "[0..7]");
  REQUIRE(evictable("window(128) | sink(4)", 0) == "[1..7]");
  REQUIRE(evictable("causal & s2(64,2,4)", 1) == "[0..2] [4..6] [8]");
  REQUIRE(evictable("causal", 0) == "[]");
  REQUIRE(evictable("full", 0) == "[]");
  REQUIRE(evictable("power(64,2,1)", 0) == "[]");
}

TEST_CASE("pattern: S2 covers the context once its heads cover the stride") {
  const int64_t n = 64 * 1024;
  const TokenRange chunk{n - 64, n};
  const PatternCoverage whole = Coverage(Parsed("s2(64,2,4)", 4), chunk, n);
  REQUIRE(whole.covered == 1.0);
  // 256 blocks of each head's stride, and the window beside it.
  REQUIRE(whole.kept_kv == Approx(0.25).margin(0.002));
  REQUIRE(Coverage(Parsed("s2(64,1,8)", 4), chunk, n).covered == Approx(0.5).margin(0.002));
  REQUIRE(Coverage(Parsed("s2(64,1,8,1)", 4), chunk, n).covered == 1.0);
  REQUIRE(Coverage(Parsed("s2(64,1,8,step=0)", 4), chunk, n).covered ==
          Approx(0.125).margin(0.002));
}

// At 10M tokens these sums would take hours pair by pair and minutes cell by cell.
TEST_CASE("pattern: counts of ten million tokens are closed forms") {
  const int64_t n = 10'000'000;
  REQUIRE(Parsed("causal", 1).CountPairs(0, {0, n}, n).visited == n * (n + 1) / 2);
  REQUIRE(Parsed("window(4096)", 1).CountPairs(0, {0, n}, n).visited ==
          4096 * n - 4095 * 4096 / 2);  // the first queries have fewer keys behind them
  const PairCount tail = Parsed("full", 1).CountPairs(0, {n - 100, n}, n);
  REQUIRE(tail.visited == 100 * n);
  REQUIRE(tail.work == tail.visited);
  const PairCount s2 = Parsed("s2(64,1,1000000)", 1).CountPairs(0, {0, n}, n);
  const int64_t blocks = n / 64;
  REQUIRE(s2.visited == blocks * (64 * 65 / 2) + (blocks - 1) * 64 * 64);
}

// A comb of an odd period has thousands of runs in the past of 10^10 tokens, of which a range that
// holds them all leaves nothing.
TEST_CASE("pattern: a range swallows the comb within it") {
  const int64_t n = int64_t{64} << 28;
  const TokenRange last{n - 64, n};
  REQUIRE(RowText(Parsed("causal | s2(5,1,39)", 1), 0, last, n) ==
          "full[0..268435454] part[268435455] ");
  REQUIRE(RowText(Parsed("s2(3,1,2) | s2(2,1,40)", 1), 0, last, n) == "part[0..268435455] ");
}

}  // namespace
}  // namespace annulus
