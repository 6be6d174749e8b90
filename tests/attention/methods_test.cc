// Every method of the table against its definition in its source, written once more here.
#include "attention/methods.h"

#include <map>
#include <string>

#include "attention/pattern.h"
#include "tests/attention/grid_rules.h"
#include "tests/attention/pattern_rules.h"
#include "tests/catch.h"

namespace annulus {
namespace {

PairRule Causal(PairRule rule) {
  return [rule](int64_t h, int64_t q, int64_t k) { return k <= q && rule(h, q, k); };
}

PairRule SinkAndWindow(int64_t sink, int64_t window) {
  return Causal([=](int64_t, int64_t q, int64_t k) { return k < sink || q - k < window; });
}

// `rest` from KV head `first` on.
PairRule ByHead(PairRule rule, int64_t first, PairRule rest) {
  return [=](int64_t h, int64_t q, int64_t k) { return (h < first ? rule : rest)(h, q, k); };
}

// Segment 0 is the instruction, the last one the query.
PairRule BlockRankRule(std::vector<int64_t> ends) {
  return Causal([ends](int64_t, int64_t q, int64_t k) {
    const auto segment = [&](int64_t at) {
      size_t i = 0;
      while (at >= ends[i]) ++i;
      return i;
    };
    return segment(q) + 1 == ends.size() || segment(k) == 0 || segment(q) == segment(k);
  });
}

PairRule MoaRule(int64_t block, int64_t blocks) {
  return Causal(
      [=](int64_t, int64_t q, int64_t k) { return k < block || q / block - k / block < blocks; });
}

// LongLoRA's shifted groups as its flash form has them: bounds {0, G/2, 3G/2, …}.
PairRule ShiftedRule(int64_t group, int64_t sink) {
  return Causal([=](int64_t, int64_t q, int64_t k) {
    return k < sink || (q + group / 2) / group == (k + group / 2) / group;
  });
}

PairRule GroupRule(int64_t group, int64_t sink) {
  return Causal([=](int64_t, int64_t q, int64_t k) { return k < sink || q / group == k / group; });
}

// The subject that a position belongs to; 0 is the background and the text.
PairRule IsolationRule() {
  return [](int64_t, int64_t q, int64_t k) {
    const auto subject = [](int64_t at) { return at < 8 || at >= 40 ? 0 : at < 24 ? 1 : 2; };
    return subject(q) == 0 || subject(k) == 0 || subject(q) == subject(k);
  };
}

// 24 condition tokens, 16 of text, 24 of the image.
PairRule AlignedRule() {
  return [](int64_t, int64_t q, int64_t k) {
    if (q < 24) return k < 24 || k >= 24;
    return k >= 24 || (q >= 40 && k == q - 40);
  };
}

PairRule SquareNa(int64_t window, int64_t stride, int64_t dilation) {
  const NaAxis axis{8, window, stride, dilation, false};
  return NaRule({axis, axis}, 0);
}

std::map<std::string, PairRule> Rules() {
  const PairRule causal = CausalRule();
  const PairRule cube = NaRule({{4, 3}, {4, 3}, {4, 3}}, 0);
  std::map<std::string, PairRule> rules = {
      {"sliding window", Causal(WindowRule(12, 0))},
      {"StreamingLLM", SinkAndWindow(4, 12)},
      {"DuoAttention", ByHead(causal, 2, SinkAndWindow(4, 8))},
      {"S2-Attention", S2Rule(4, 2, 4, 0, 1, 0, 4)},
      {"HHST", S2Rule(4, 2, 4, 1, 1, 0, 4)},
      {"S2 relative", RelativeS2Rule(4, 2, 2, 3)},
      {"LongGen", SinkAndWindow(8, 16)},
      {"PowerAttention", PowerRule(4, 2, 1)},
      {"MoA", ByHead(MoaRule(4, 3), 2, MoaRule(4, 8))},
      {"LongLoRA S2-Attn", ByHead(GroupRule(16, 0), 2, ShiftedRule(16, 0))},
      {"SinkLoRA SF-Attn", ByHead(GroupRule(16, 4), 3, ShiftedRule(16, 4))},
      {"BlockRank", BlockRankRule({8, 24, 40, 56, 64})},
      {"A-shape, tri-shape",
       Causal([](int64_t, int64_t q, int64_t k) { return k < 4 || q - k < 12 || q >= 56; })},
      {"Flux", SinkAndWindow(6, 10)},
      {"Titans prefix", ShiftedRule(16, 8)},
      {"packed documents", Causal(DocsRule({24, 16, 24}))},
      {"prefix LM", [](int64_t, int64_t q, int64_t k) { return k <= q || k < 16; }},
      {"NA", SquareNa(3, 1, 1)},
      {"DiNA", SquareNa(3, 1, 2)},
      {"GNA", NaRule({{4, 2, 1}, {4, 3, 2}, {4, 3, 2}}, 0)},
      {"window blocks",
       [](int64_t, int64_t q, int64_t k) { return q / 32 == k / 32 && q % 8 / 4 == k % 8 / 4; }},
      {"MaxViT grid", GridRule(8, 8, 4)},
      {"CSWin", CrossRule(8, 8, 2, 4)},
      {"HaloNet", SquareNa(4, 2, 1)},
      {"CLEAR", DiskRule(7, 8, 3, 8)},
      {"VideoFactory", cube},
      {"PAROAttention",
       ByHead(OrderRule({4, 4, 4}, {2, 0, 1}, WindowRule(6, 6)), 2, WindowRule(6, 6))},
      {"PKA", AlignedRule()},
      {"IR isolation", IsolationRule()},
  };
  return rules;
}

TEST_CASE("methods: each one's example is its definition, pair by pair") {
  const std::map<std::string, PairRule> rules = Rules();
  size_t compared = 0;
  for (const Method& method : Methods()) {
    CAPTURE(method.name);
    if (method.example.empty()) continue;  // lists: tests/attention/*list*_test.cc
    const auto pattern = Pattern::Parse(method.example, kMethodKvHeads);
    INFO(pattern.status().ToString());
    REQUIRE(pattern.ok());
    REQUIRE(pattern->CheckTokens(kMethodTokens).ok());
    if (method.name == "Stochastic Attention") continue;  // below
    const auto rule = rules.find(std::string(method.name));
    REQUIRE(rule != rules.end());
    ++compared;
    for (int head = 0; head < kMethodKvHeads; ++head) {
      for (int64_t q = 0; q < kMethodTokens; ++q) {
        for (int64_t k = 0; k < kMethodTokens; ++k) {
          CAPTURE(head, q, k);
          REQUIRE(pattern->Allows(head, q, k) == rule->second(head, q, k));
        }
      }
    }
  }
  CHECK(compared == rules.size());
}

// Its order is random: each query sees those of the 11 around its place that are not later.
TEST_CASE("methods: stochastic attention sees a window of another order, and no later key") {
  const auto pattern = Pattern::Parse("causal & permute(7,64,window(6,5))", 1);
  const auto whole = Pattern::Parse("permute(7,64,window(6,5))", 1);
  REQUIRE((pattern.ok() && whole.ok()));
  int64_t visited = 0;
  for (int64_t q = 0; q < 64; ++q) {
    for (int64_t k = 0; k < 64; ++k) {
      REQUIRE(pattern->Allows(0, q, k) == (k <= q && whole->Allows(0, q, k)));
      visited += whole->Allows(0, q, k);
    }
    REQUIRE(whole->Allows(0, q, q));
  }
  CHECK(visited == 64 * 11 - 2 * (1 + 2 + 3 + 4 + 5));
}

}  // namespace
}  // namespace annulus
