// Selections by an index that look at tokens in f32 first: the bounds hold, and what is chosen are
// the same bits as of scores in f64 alone, on every instruction set.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>

#include "attention/pattern.h"
#include "attention/select/index.h"
#include "attention/select/scores.h"
#include "attention/select/screen.h"
#include "attention/select/screen_bf16.h"
#include "base/rng.h"
#include "tests/attention/contenders.h"
#include "tests/catch.h"

namespace annulus {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Question {
  std::string word;
  int kv_heads = 1;
  int queries = 1;
  int index_heads = 64;
  int dim = 64;
  DType dtype = DType::kBF16;
  int64_t tokens = 1000;  // of the context
  int64_t parts = 3;
};

// What is in a question: functions of a row, a head or none, and a dim.
struct Data {
  std::function<float(Rng&, int64_t, int64_t)> k;
  std::function<float(Rng&, int64_t, int64_t)> q;
  std::function<float(Rng&, int64_t)> weight;
};

Tensor Made(Rng& rng, DType dtype, int64_t tokens, int64_t heads, int64_t dim,
            const std::function<float(Rng&, int64_t, int64_t)>& of) {
  Tensor tensor(dtype, tokens, heads, dim);
  for (int64_t i = 0; i < tokens * heads * dim; ++i) {
    const float x = of(rng, i / dim, i % dim);
    Convert(&x, DType::kF32, tensor.data() + static_cast<size_t>(i) * SizeOf(dtype), dtype, 1);
  }
  return tensor;
}

std::vector<Candidate> Firsts(std::vector<Candidate> all, int64_t picks) {
  std::sort(all.begin(), all.end(), Before);
  all.resize(std::min(all.size(), static_cast<size_t>(picks)));
  return all;
}

void RequireTheSame(const Question& of, const Data& data, uint64_t seed) {
  Rng rng(seed);
  CAPTURE(of.word, of.queries, of.index_heads, of.dim, static_cast<int>(of.dtype), of.tokens, seed);
  const Pattern pattern = Pattern::Parse(of.word, of.kv_heads).value();
  const Selector& selector = *pattern.selectors()[0];
  const Tensor k = Made(rng, of.dtype, of.tokens, 1, of.dim, data.k);
  const Tensor q = Made(rng, of.dtype, of.queries, of.index_heads, of.dim, data.q);
  std::vector<float> weights(static_cast<size_t>(of.queries * of.index_heads));
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = data.weight(rng, static_cast<int64_t>(i));
  }
  const KvTable table = KvTable::FromTensors(k, k);
  const SelectKeys keys{.kv = &table};
  const SelectRows rows{.selector = &selector,
                        .q = q,
                        .weights = selector.index()->weighs ? weights.data() : nullptr,
                        .q_begin = of.tokens - of.queries,
                        .heads = {0, selector.index()->lists},
                        .kv_tokens = of.tokens};
  const int64_t lists = rows.heads.count * of.queries;
  std::vector<int64_t> blocks;
  for (int64_t block = 0; block < BlocksOf(of.tokens); ++block) blocks.push_back(block);
  ForEachSimdTarget([&] {
    std::vector<std::vector<Candidate>> expected(static_cast<size_t>(lists));
    REQUIRE(BestByIndex(rows, 0, of.queries, keys, blocks, absl::MakeSpan(expected)).ok());
    // Parts are cut where units are.
    const int64_t of_unit = std::max<int64_t>(1, selector.unit_tokens() / kBlockTokens);
    const int64_t chunks = (std::ssize(blocks) + of_unit - 1) / of_unit;
    const auto cut = [&](int64_t part) {
      return std::min(std::ssize(blocks), chunks * part / of.parts * of_unit);
    };
    const auto blocks_of = [&](int64_t part) {
      return absl::MakeSpan(blocks).subspan(cut(part), cut(part + 1) - cut(part));
    };
    ScreenedIndex screened(rows, 0, of.queries, of.parts);
    for (int64_t part = 0; part < of.parts; ++part) screened.Look(part, keys, blocks_of(part));
    std::vector<std::vector<Candidate>> merged(static_cast<size_t>(lists));
    for (int64_t part = 0; part < of.parts; ++part) {
      std::vector<std::vector<Candidate>> best(static_cast<size_t>(lists));
      screened.Best(part, keys, blocks_of(part), absl::MakeSpan(best));
      for (size_t i = 0; i < best.size(); ++i) {
        REQUIRE(std::is_sorted(best[i].begin(), best[i].end(), Before));
        merged[i].insert(merged[i].end(), best[i].begin(), best[i].end());
      }
    }
    for (size_t i = 0; i < merged.size(); ++i) {
      CAPTURE(i);
      const auto first = Firsts(merged[i], selector.picks_of_candidates());
      REQUIRE(first.size() == expected[i].size());
      REQUIRE(std::memcmp(first.data(), expected[i].data(), first.size() * sizeof(Candidate)) == 0);
    }
  });
}

float Normal(Rng& rng, int64_t, int64_t) {
  return rng.Normal();
}

// Data by name, each a kind of trouble.
std::vector<std::pair<std::string, Data>> Kinds() {
  const auto weigh = [](Rng& rng, int64_t) { return std::fabs(rng.Normal()); };
  const auto scaled = [](float by) {
    return [by](Rng& rng, int64_t, int64_t) { return by * rng.Normal(); };
  };
  const auto few = [](Rng& rng, int64_t, int64_t) {
    return static_cast<float>(rng.Between(-1, 1));
  };
  return {
      {"normal", {Normal, Normal, weigh}},
      {"weights of either sign", {Normal, Normal, [](Rng& rng, int64_t) { return rng.Normal(); }}},
      {"weights of zero", {Normal, Normal, [](Rng&, int64_t) { return 0.0f; }}},
      {"many zero weights",
       {Normal, Normal, [](Rng& rng, int64_t i) { return i % 8 == 0 ? rng.Normal() : 0.0f; }}},
      {"few values, so that many scores are equal", {few, few, [](Rng&, int64_t) { return 1.0f; }}},
      {"two kinds of keys",
       {[](Rng&, int64_t t, int64_t) { return t % 7 == 0 ? 2.0f : 1.0f; }, Normal, weigh}},
      {"equal keys",
       {[](Rng&, int64_t, int64_t c) { return static_cast<float>(c % 5); }, Normal, weigh}},
      {"products below zero",
       {[](Rng& rng, int64_t, int64_t) { return std::fabs(rng.Normal()); },
        [](Rng& rng, int64_t, int64_t) { return -std::fabs(rng.Normal()); }, weigh}},
      {"scores that rise",
       {[](Rng& rng, int64_t t, int64_t) { return static_cast<float>(t) + rng.Normal(); },
        [](Rng&, int64_t, int64_t) { return 1.0f; }, weigh}},
      {"huge keys", {scaled(0x1p100f), scaled(0x1p30f), weigh}},
      {"products beyond f32", {scaled(0x1p100f), scaled(0x1p60f), weigh}},
      {"products beyond f32 that weights make small",
       {scaled(0x1p100f), scaled(0x1p60f), [](Rng&, int64_t) { return 0x1p-100f; }}},
      {"a few keys beyond all",
       {[](Rng& rng, int64_t t, int64_t) { return t % 97 == 3 ? 0x1p126f : rng.Normal(); }, Normal,
        weigh}},
      {"sums beyond f32 that cancel out",
       {[](Rng&, int64_t, int64_t c) { return c % 2 == 0 ? 0x1p120f : -0x1p120f; },
        [](Rng& rng, int64_t, int64_t) { return 256 + static_cast<float>(rng.Between(0, 1)); },
        weigh}},
      {"infinities",
       {[](Rng& rng, int64_t t, int64_t c) {
          return t % 131 == 5 && c == 3 ? kInfinity : rng.Normal();
        },
        Normal, weigh}},
      {"tiny keys", {scaled(0x1p-126f), Normal, weigh}},
      {"subnormal keys and small queries", {scaled(0x1p-130f), scaled(0x1p-10f), weigh}},
      {"products below f32", {scaled(0x1p-80f), scaled(0x1p-80f), weigh}},
      {"huge weights", {Normal, Normal, [](Rng& rng, int64_t) { return 0x1p125f * rng.Normal(); }}},
      {"scores a few roundings apart",
       {[](Rng& rng, int64_t, int64_t c) {
          return c % 2 == 0 ? 100.0f + static_cast<float>(c) : 0.001f * rng.Normal();
        },
        Normal, weigh}},
      {"outlying dims",
       {[](Rng& rng, int64_t, int64_t c) { return (c == 7 ? 1000.0f : 1.0f) * rng.Normal(); },
        Normal, weigh}},
  };
}

TEST_CASE("what is chosen after a look in f32 are the same bits as without") {
  uint64_t seed = 1;
  for (const auto& [name, data] : Kinds()) {
    CAPTURE(name);
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      RequireTheSame({.word = "dsa(40)", .dtype = dtype}, data, seed++);
      RequireTheSame({.word = "dsa(7)",
                      .queries = 3,
                      .index_heads = 9,
                      .dim = 24,
                      .dtype = dtype,
                      .tokens = 331,
                      .parts = 2},
                     data, seed++);
      RequireTheSame({.word = "dsa(100)",
                      .index_heads = 37,
                      .dim = 8,
                      .dtype = dtype,
                      .tokens = 70,
                      .parts = 1},
                     data, seed++);
      RequireTheSame({.word = "msa(128,4)",
                      .kv_heads = 8,
                      .queries = 2,
                      .index_heads = 8,
                      .dtype = dtype,
                      .tokens = 1337},
                     data, seed++);
      RequireTheSame({.word = "msa(16,5)",
                      .kv_heads = 20,
                      .index_heads = 20,
                      .dim = 72,
                      .dtype = dtype,
                      .tokens = 500},
                     data, seed++);
    }
  }
}

// Of random rows, which are bf16 values where looks are by pairs of them.
void RequireNear(Rng& rng, int heads, int dim, bool weighs, bool by_pairs) {
  CAPTURE(heads, dim, weighs, by_pairs);
  const auto random = [&] {
    const auto x = static_cast<float>(rng.Normal() * std::exp2(rng.Normal() * 8));
    return by_pairs ? BF16ToF32(F32ToBF16(x)) : x;
  };
  std::vector<double> q(static_cast<size_t>(heads * dim));
  for (double& x : q) x = random();
  std::vector<float> k(static_cast<size_t>(kBlockTokens * dim));
  for (float& x : k) x = random();
  std::vector<uint16_t> halves(k.size());
  Convert(k.data(), DType::kF32, halves.data(), DType::kBF16, std::ssize(k));
  std::vector<float> weights(static_cast<size_t>(heads));
  for (float& x : weights) x = rng.Normal();
  std::vector<float> dots(static_cast<size_t>(kBlockTokens * heads)), weighed(kBlockTokens);
  Scores(q.data(), heads, dim, PlacesOf(k.data(), kBlockTokens, dim), dots.data());
  WeighedScores(dots.data(), kBlockTokens, weights.data(), heads, weighed.data());
  const ScreenQueries look(q, dim, weighs ? weights.data() : nullptr);
  REQUIRE((look.by_pairs() || !by_pairs));
  const size_t row_bytes = static_cast<size_t>(dim) * (by_pairs ? sizeof halves[0] : sizeof k[0]);
  const auto* const first = by_pairs ? reinterpret_cast<const std::byte*>(halves.data())
                                     : reinterpret_cast<const std::byte*>(k.data());
  for (const int tokens : {1, 5, 63, 64}) {
    std::vector<float> scores(look.score_floats());
    std::vector<float> errors(static_cast<size_t>(look.lists())), highest(look.stride());
    ScreenBlock block(dim, by_pairs);
    block.Take({first, row_bytes, tokens, by_pairs ? DType::kBF16 : DType::kF32}, {});
    look.Look(block, tokens, scores.data(), errors.data());
    HighestOf(scores.data(), tokens, look.stride(), highest.data());
    for (int list = 0; list < look.lists(); ++list) {
      float top = -kInfinity;
      for (int t = 0; t < tokens; ++t) {
        const float score = scores[static_cast<size_t>(t) * look.stride() + list];
        const float canonical = weighs ? weighed[t] : dots[t * heads + list];
        top = std::max(top, score);
        REQUIRE(std::fabs(double{score} - canonical) <= errors[list]);
      }
      REQUIRE(highest[list] == top);
      REQUIRE(errors[list] < kInfinity);
    }
  }
}

TEST_CASE("a look is no farther from the canonical score than it says") {
  Rng rng(5);
  for (const int heads : {1, 8, 33, 64}) {
    for (const int dim : {8, 64, 136}) {
      for (const bool weighs : {false, true}) {
        ForEachSimdTarget([&] {
          RequireNear(rng, heads, dim, weighs, false);
          if (select::LooksByPairs()) RequireNear(rng, heads, dim, weighs, true);
        });
      }
    }
  }
}

TEST_CASE("the floor is the lowest of the best, whatever the order and number of what raises it") {
  Rng rng(6);
  for (int round = 0; round < 100; ++round) {
    const auto picks = static_cast<int64_t>(1 + rng.Below(40));
    Floor floor(picks);
    std::vector<float> all;
    while (all.size() < 300) {
      std::vector<float> some(rng.Below(50));
      for (float& x : some) x = static_cast<float>(rng.Below(round % 2 == 0 ? 5 : 1000));
      floor.Raise(some);
      all.insert(all.end(), some.begin(), some.end());
      std::sort(all.begin(), all.end(), std::greater<>());
      REQUIRE(floor.value() ==
              (std::ssize(all) < picks ? -kInfinity : all[static_cast<size_t>(picks - 1)]));
    }
  }
}

}  // namespace
}  // namespace annulus
