// The words of the pattern language: each one's line in the table, and rules too rare for the
// random patterns to meet often.
#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "attention/methods.h"
#include "attention/pattern.h"
#include "attention/patterns/word.h"
#include "base/rng.h"
#include "tests/attention/grid_rules.h"
#include "tests/catch.h"

namespace annulus {
namespace {

Pattern Parsed(const std::string& text, int kv_heads = 2) {
  INFO(text);
  absl::StatusOr<Pattern> pattern = Pattern::Parse(text, kv_heads);
  INFO(pattern.status().ToString());
  REQUIRE(pattern.ok());
  return *std::move(pattern);
}

// Allows, masks, rows and counts say what the rule says, for all queries and keys below `tokens`.
void CheckMeaning(const Pattern& pattern, const PairRule& allows, int64_t tokens) {
  INFO(pattern.text());
  for (int head = 0; head < pattern.kv_heads(); ++head) {
    int64_t visited = 0;
    for (int64_t q_block = 0; q_block * kBlockTokens < tokens; ++q_block) {
      const TokenRange q{q_block * kBlockTokens, std::min((q_block + 1) * kBlockTokens, tokens)};
      std::vector<TileRun> tiles;
      pattern.Row(head, q, tokens, &tiles);
      std::set<int64_t> seen;
      for (const TileRun& tile : tiles) {
        for (int64_t i = 0; i < tile.blocks.count; ++i) {
          seen.insert(tile.blocks.first + i * tile.blocks.step);
        }
      }
      for (int64_t k_block = 0; k_block * kBlockTokens < tokens; ++k_block) {
        uint64_t mask[kBlockTokens];
        pattern.CellMask(head, q_block, k_block, mask);
        const int64_t before = visited;
        for (int64_t i = q.begin; i < q.end; ++i) {
          for (int64_t k = k_block * 64; k < std::min(k_block * 64 + 64, tokens); ++k) {
            CAPTURE(head, i, k);
            const bool expected = allows(head, i, k);
            REQUIRE(pattern.Allows(head, i, k) == expected);
            REQUIRE((mask[i % 64] >> (k % 64) & 1) == expected);
            visited += expected;
          }
        }
        CAPTURE(head, q_block, k_block);
        REQUIRE(seen.count(k_block) == (visited > before ? 1 : 0));
      }
    }
    REQUIRE(pattern.CountPairs(head, {0, tokens}, tokens).visited == visited);
  }
}

TEST_CASE("pattern words: the table names each once, and its example is one") {
  std::set<absl::string_view> names;
  for (const PatternWord& word : PatternWords()) {
    CAPTURE(word.name);
    CHECK(names.insert(word.name).second);
    CHECK(FindPatternWord(word.name) == &word);
    CHECK(word.form.substr(0, word.name.size()) == word.name);
    CHECK_FALSE(word.meaning.empty());
    if (word.example.empty()) continue;
    CHECK(std::string(word.example).find(std::string(word.name)) != std::string::npos);
    const Pattern pattern = Parsed(std::string(word.example), kMethodKvHeads);
    CHECK(pattern.CheckTokens(64).ok());
    CHECK(pattern.CountPairs(0, {0, 64}, 64).visited > 0);
  }
  CHECK(FindPatternWord("heads") == nullptr);
}

TEST_CASE("pattern words: na keeps NATTEN's rules, at borders and with dilations too") {
  const uint64_t seed = 16;
  Rng rng(seed);
  for (int i = 0; i < 1000; ++i) {
    std::vector<NaAxis> axes(rng.Between(1, 3));
    std::vector<std::string> lengths, windows, strides, dilations, causal;
    std::vector<int64_t> extents;
    for (NaAxis& axis : axes) {
      axis.length = rng.Between(1, axes.size() == 1 ? 150 : axes.size() == 2 ? 13 : 6);
      axis.dilation = rng.Between(1, std::min<int64_t>(5, axis.length));
      axis.window = rng.Between(1, axis.length / axis.dilation);
      axis.stride = rng.Between(1, axis.window);
      axis.causal = rng.Below(2) == 0;
      extents.push_back(axis.length);
      lengths.push_back(absl::StrCat(axis.length));
      windows.push_back(absl::StrCat(axis.window));
      strides.push_back(absl::StrCat(axis.stride));
      dilations.push_back(absl::StrCat(axis.dilation));
      causal.push_back(absl::StrCat(int{axis.causal}));
    }
    const int64_t extra = rng.Below(4) == 0 ? rng.Between(1, 70) : 0;
    const auto by = [](const std::vector<std::string>& numbers) {
      std::string text = numbers[0];
      for (size_t n = 1; n < numbers.size(); ++n) text += "x" + numbers[n];
      return text;
    };
    const Pattern pattern = Parsed(
        absl::StrCat("na(", by(lengths), ",", by(windows), ",stride=", by(strides),
                     ",dilation=", by(dilations), ",causal=", by(causal), ",extra=", extra, ")"),
        1);
    CAPTURE(seed, i);
    CheckMeaning(pattern, NaRule(axes, extra), TokensOn(extents) + extra + 5);
  }
}

// A permutation is what `permute` says of single keys, and the same for every pattern inside it.
TEST_CASE("pattern words: permute is one order of its tokens for each seed") {
  Rng rng(17);
  std::set<std::vector<int64_t>> orders;
  for (const int64_t tokens : {1, 2, 3, 64, 100, 257}) {
    for (const int64_t seed : {0, 1, 12345}) {
      std::vector<int64_t> place(tokens, -1);
      for (int64_t at = 0; at < tokens; ++at) {
        const Pattern one =
            Parsed(absl::StrCat("permute(", seed, ",", tokens, ",keys(", at, ",", at + 1, "))"), 1);
        for (int64_t k = 0; k < tokens; ++k) {
          if (!one.Allows(0, 0, k)) continue;
          REQUIRE(place[k] == -1);
          place[k] = at;
        }
      }
      REQUIRE(std::count(place.begin(), place.end(), -1) == 0);
      const int64_t left = rng.Between(0, 12), right = rng.Between(0, 12);
      const Pattern window = Parsed(
          absl::StrCat("permute(", seed, ",", tokens, ",window(", left, ",", right, "))"), 1);
      CheckMeaning(window, PermuteRule(place, WindowRule(left, right)), tokens + 3);
      if (tokens == 257) orders.insert(place);
    }
  }
  CHECK(orders.size() == 3);
}

TEST_CASE("pattern words: permute says of a query alone what it says of its block") {
  constexpr int64_t kTokens = 5000;
  const std::string text = "permute(5,5000,window(300,40))";
  for (const bool block_first : {false, true}) {
    const Pattern pattern = Parsed(text, 1);
    for (const int64_t q : {int64_t{130}, int64_t{131}, kTokens - 1}) {
      CAPTURE(block_first, q);
      const int64_t q_block = q / kBlockTokens;
      std::vector<TileRun> tiles;
      uint64_t alone[kBlockTokens], together[kBlockTokens];
      if (block_first) pattern.CellMask(0, q_block, 0, together);
      pattern.Row(0, {q, q + 1}, kTokens, &tiles);
      std::set<int64_t> seen;
      for (const TileRun& tile : tiles) {
        for (int64_t i = 0; i < tile.blocks.count; ++i) {
          seen.insert(tile.blocks.first + i * tile.blocks.step);
        }
      }
      for (int64_t k_block = 0; k_block < BlocksOf(kTokens); ++k_block) {
        pattern.CellMask(0, TokenRange{q, q + 1}, k_block, alone);
        Parsed(text, 1).CellMask(0, q_block, k_block, together);
        const auto row = static_cast<size_t>(q % kBlockTokens);
        REQUIRE(alone[row] == together[row]);
        REQUIRE((alone[row] != 0) == seen.contains(k_block));
        alone[row] = 0;
        REQUIRE(std::count(alone, alone + kBlockTokens, 0) == kBlockTokens);
      }
    }
  }
}

TEST_CASE("pattern words: what an order is given to reorder has a bound") {
  const auto refusal = [](const std::string& text) {
    return std::string(Pattern::Parse(text, 2).status().message());
  };
  CHECK(refusal("permute(1,20000,full)") ==
        "pattern: at 17: one without a bound; expected a pattern of which a query sees at most "
        "16384 keys");
  CHECK(refusal("permute(1,40000,window(9000,9000))") ==
        "pattern: at 17: 18000; expected a pattern of which a query sees at most 16384 keys");
  CHECK(Pattern::Parse("permute(1,16384,full)", 2).ok());
  CHECK(refusal("permute(1,64,list(x))") ==
        "pattern: at 14: one with such a word; expected a pattern without list, permute and order");
  CHECK(refusal("permute(1,281474976710657,window(9))")
            .find("at 27: one of more; expected an order of at most") != std::string::npos);
  CHECK(refusal("order(4x4,0x0,causal)") ==
        "pattern: at 11: others; expected the axes 0 to 1, each once, joined by x");
  CHECK(refusal("order(4x4,0x2,causal)").find("at 11: others; expected the axes") !=
        std::string::npos);
  CHECK(refusal("na(8x8,window=9)") ==
        "pattern: at 15: 9·1; expected window·dilation of at most 8");
  CHECK(refusal("na(8x8,window=3,stride=4)") ==
        "pattern: at 15: 4; expected a stride of at most the window's 3");
  CHECK(refusal("na(8x8,window=3x3x3)") ==
        "pattern: at 15: 3; expected one window or 2 joined by x");
  CHECK(refusal("na(8x8x8x8,3)").find("or up to 3 joined by x") != std::string::npos);
  CHECK(refusal("na(8x8,3,causal=2)") == "pattern: at 17: 2; expected 0 or 1");
  CHECK(refusal("na(8x,3)").find("at 4: \"8x\"; expected a number from 1") != std::string::npos);
  CHECK(refusal("na(4194304x4194304,3)") ==
        "pattern: at 4: more; expected a grid of at most 2^40 tokens");
  CHECK(refusal("grid(8x9,4)") == "pattern: at 10: 4; expected a divisor of 9");
  CHECK(refusal("grid(8,4)") == "pattern: at 6: 1; expected at least 2 extents joined by x");
}

}  // namespace
}  // namespace annulus
