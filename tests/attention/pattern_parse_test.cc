// What the parser refuses, where it says so, and that no text harms it.
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "attention/pattern.h"
#include "base/rng.h"
#include "tests/attention/pattern_random.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr int kHostileTexts = 20000;

std::string Refusal(const std::string& text, int kv_heads = 4) {
  const absl::StatusOr<Pattern> pattern = Pattern::Parse(text, kv_heads);
  if (pattern.ok()) return "accepted";
  REQUIRE(pattern.status().code() == absl::StatusCode::kInvalidArgument);
  return std::string(pattern.status().message());
}

// At position `at` of the text; `found` and `expected` may leave out the end.
void CheckRefused(const std::string& text, int at, const std::string& expected,
                  const std::string& found = "") {
  const std::string refusal = Refusal(text);
  CAPTURE(text, at, expected, found, refusal);
  REQUIRE(absl::StartsWith(refusal, absl::StrCat("pattern: at ", at, ": ", found)));
  REQUIRE(absl::StrContains(refusal, "; expected " + expected));
}

TEST_CASE("pattern: errors name the place, the finding and the expectation") {
  CheckRefused("", 1, "full, causal, window, sink, ");
  CheckRefused("", 1, "full", "the end of the text; ");
  CHECK(absl::EndsWith(Refusal(""), ", heads or \"(\""));
  CheckRefused("  foo", 3, "full");
  CheckRefused("Causal", 1, "full");
  CheckRefused("causal |", 9, "full");
  CheckRefused("causal || full", 9, "full");
  CheckRefused("full()", 5, "\"|\", \"&\" or the end of the text", "\"(\"");
  CheckRefused("causal full", 8, "\"|\"");
  CheckRefused("(causal", 8, "\"|\", \"&\" or \")\"", "the end of the text");
  CheckRefused("causal)", 7, "\"|\"");
  CheckRefused("window", 7, "\"(\"");
  CheckRefused("window()", 8, "a number from 0 to 2^63 - 1 for left", "\")\"");
  CheckRefused("window(-1)", 8, "a number from 0");
  CheckRefused("window(64K)", 8, "a number from 0 to 2^63 - 1 for left", "\"64K\"");
  CheckRefused("window(1.5)", 9, "\",\" or \")\"", "\".\"");
  CheckRefused("window(1,2,3)", 12, "at most 2 arguments", "\"3\"");
  CheckRefused("window(right=2)", 15, "\",\" and left");
  CheckRefused("window(left=1,2)", 15, "name=number after an argument by name");
  CheckRefused("window(left=1,left=2)", 15, "each argument once", "\"left\"");
  CheckRefused("window(1,left=2)", 10, "each argument once");
  CheckRefused("window(size=2)", 8, "a number or one of left, right", "\"size\"");
  CheckRefused("sink(9223372036854775808)", 6, "a number from 0 to 2^63 - 1 for n");
  CheckRefused("sink(18446744073709551617)", 6, "a number");
  CheckRefused("docs()", 6, "a number from 1");
  CheckRefused("docs(3,0)", 8, "a number from 1");
  CheckRefused("docs(3,)", 8, "a number from 1");
  CheckRefused("docs(1,9223372036854775807)", 8, "document lengths of at most 2^60");
  CheckRefused("s2(0,1,1)", 4, "a number from 1 to 2^63 - 1 for block", "\"0\"");
  CheckRefused("s2(64,0,1)", 7, "a number from 1 to 2^63 - 1 for local");
  CheckRefused("s2(64,1,x)", 9, "a number or one of block, local, stride");
  CheckRefused("s2(64,1,stride=x)", 16, "a number from 1 to 2^63 - 1 for stride");
  CheckRefused("s2(64,1,0)", 9, "a number from 1");
  CheckRefused("s2(64,1)", 8, "\",\" and stride");
  CheckRefused("s2(64,1,4,5)", 11, "dense_heads of at most 4 KV heads", "5");
  CheckRefused("s2(64,1,9223372036854775807)", 9, "block·stride of at most 2^60");
  CheckRefused("power(0,1,1)", 7, "a number from 1");
  CheckRefused("power(64,1)", 11, "\",\" and sink");
  CheckRefused("rows(5,4)", 8, "a position from 5 on", "4");
  CheckRefused("segments(0)", 10, "a number from 1 to 2^63 - 1 for tokens");
  CheckRefused("band(64,0)", 9, "a number from 1 to 2^63 - 1 for n");
  CheckRefused("band(64,9223372036854775807)", 9, "less than 2^60 tokens of blocks");
  CheckRefused("slash(64)", 9, "\",\"", "\")\"");
  CheckRefused("slash(64,)", 10, "a number from 0 to 2^63 - 1 for a distance in blocks");
  CheckRefused("s2r(64,0,1,1)", 8, "a number from 1 to 2^63 - 1 for left");
  CheckRefused("s2r(64,1,1,9223372036854775807)", 12, "blocks of at most 2^58 tokens");
  CheckRefused("heads()", 7, "a number from 0 to 2^63 - 1 for a KV head");
  CheckRefused("heads(0: causal)", 16, "\";\" and a rule for KV head 1 of 4");
  CheckRefused("heads(0-3: causal", 18, "\"|\", \"&\", \";\" or \")\"");
  CheckRefused("heads(0-3: causal; 3: full)", 20, "each KV head once in heads", "head 3 again");
  CheckRefused("heads(0-4: causal)", 9, "a KV head below 4", "4");
  CheckRefused("heads(3-0: causal)", 9, "a KV head from 3 on", "0");
  CheckRefused("heads(0-3 causal)", 11, "\":\"", "\"causal\"");
}

TEST_CASE("pattern: what is found is escaped and cut") {
  CheckRefused("\x01\xff", 1, "full", "\"\\x01\"; ");
  const std::string refusal = Refusal(std::string(5000, 'x'));
  REQUIRE(refusal.size() < 300);
  REQUIRE(absl::StrContains(refusal, "xxx…\""));
}

TEST_CASE("pattern: text, depth, primitives, terms and heads are bounded") {
  CheckRefused(std::string((1 << 20) - 3, ' ') + "full", 1048577, "at most 1048576");
  REQUIRE(Refusal(std::string((1 << 20) - 4, ' ') + "full") == "accepted");
  const auto nested = [](int levels) {
    return std::string(levels, '(') + "full" + std::string(levels, ')');
  };
  REQUIRE(Refusal(nested(64)) == "accepted");
  CheckRefused(nested(65), 65, "at most 64 levels of nesting");
  std::string heads = "full";
  for (int i = 0; i < 65; ++i) heads = "heads(0-3:" + heads + ")";
  CheckRefused(heads, 646, "at most 64 levels of nesting");
  std::string many = "full";
  for (int i = 1; i < 4096; ++i) many += "|full";
  REQUIRE(Refusal(many) == "accepted");
  CheckRefused(many + "|full", 20481, "at most 4096 primitives");
  // Each is a list of a call, of which a message has room for so many.
  std::string words = "list(x0)";
  for (int i = 1; i < 15; ++i) words += absl::StrCat("|list(x", i, ")");
  words += "|moba(64,1)";
  REQUIRE(Refusal(words + "|moba(64,1)|list(x0)") == "accepted");
  CheckRefused(words + "|quest(64)", 1,
               "at most 16 lists and words that choose keys (pattern_lists_max)", "17");
  std::string sum = "(full";
  for (int i = 1; i < 128; ++i) sum += "|full";
  sum += ")";
  REQUIRE(Refusal(sum + "&" + sum) == "accepted");
  CheckRefused("causal&(" + sum + "&" + sum + "&" + sum + ")", 9,
               "at most 32768 terms after expansion (pattern_terms_max)");
  // What all heads' rules cost together, however short the text.
  std::string parts = "s2(64,1,1024)";
  for (int i = 1; i < 255; ++i) parts += "|s2(64,1,1024)";
  REQUIRE(Refusal(parts, 512) == "accepted");
  REQUIRE(
      Refusal(parts + "|" + parts + "|" + parts, 1024)
          .find(": more; expected at most 262144 parts over all KV heads (pattern_parts_max)") !=
      std::string::npos);
  REQUIRE(Refusal("full", 0) == "kv_heads: 0; expected 1 to 1024");
  REQUIRE(Refusal("full", 1025) == "kv_heads: 1025; expected 1 to 1024");
}

// Valid patterns with a few bytes changed, dropped, doubled or moved, and plain noise.
TEST_CASE("pattern: hostile texts are refused in words") {
  int refused = 0;
  for (int seed = 1; seed <= kHostileTexts; ++seed) {
    Rng rng(static_cast<uint64_t>(seed));
    std::string text = PatternMaker(rng.Next(), 3, 400).Make(3).text;
    for (int64_t changes = rng.Between(1, 4); changes > 0 && !text.empty(); --changes) {
      constexpr char kBytes[] = "0123456789(),;:-=|& abdefhlopstuwx_\n\t\"\\";
      const size_t at = rng.Below(text.size());
      switch (rng.Below(5)) {
        case 0:
          text[at] = kBytes[rng.Below(sizeof(kBytes))];
          break;
        case 1:
          text[at] = static_cast<char>(rng.Below(256));
          break;
        case 2:
          text.erase(at, rng.Below(6));
          break;
        case 3:
          text.insert(at, text.substr(rng.Below(text.size()), rng.Below(20)));
          break;
        default:
          text.insert(at, std::string(rng.Below(30), kBytes[rng.Below(sizeof(kBytes))]));
      }
    }
    CAPTURE(seed, text);
    const absl::StatusOr<Pattern> pattern = Pattern::Parse(text, 3);
    if (pattern.ok()) {
      // What was accepted must also run: numbers may be extreme now.
      std::vector<TileRun> tiles;
      uint64_t mask[64];
      pattern->Row(1, {330, 384}, 400, &tiles);
      pattern->CellMask(2, 3, 2, mask);
      pattern->CountPairs(0, {0, 400}, 400);
      pattern->Evictable(1, 300, 400);
    } else {
      ++refused;
      const absl::string_view message = pattern.status().message();
      REQUIRE(absl::StartsWith(message, "pattern: at "));
      REQUIRE(message.size() < 300);
      for (const char c : message) REQUIRE((c & 0xe0) != 0);  // one line, nothing raw
    }
  }
  REQUIRE(refused > kHostileTexts / 2);
}

}  // namespace
}  // namespace annulus
