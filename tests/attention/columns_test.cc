// The column pass of one holder of keys: sums that do not depend on the order of their terms,
// exponentials and votes of the same bits on every instruction set, and the weights of the float64
// reference.
#include <cmath>
#include <cstring>
#include <numeric>

#include "attention/reference/columns.h"
#include "attention/reference/vertical_slash.h"
#include "attention/select/columns.h"
#include "attention/select/exp2.h"
#include "attention/select/keep.h"
#include "base/rng.h"
#include "tests/attention/contenders.h"
#include "tests/catch.h"

namespace annulus {
namespace {

struct Term {
  uint32_t mantissa;
  int32_t exponent;
};

bool SameBits(double a, double b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

TEST_CASE("a sum of exponentials is the same however its terms are grouped and ordered") {
  Rng rng(41);
  for (const int spread : {1, 10, 60, 200, 100'000}) {
    std::vector<Term> terms;
    for (int i = 0; i < 300; ++i) {
      terms.push_back({static_cast<uint32_t>((1u << 29) + rng.Below(3u << 29)),
                       static_cast<int32_t>(rng.Below(static_cast<uint64_t>(spread))) - 500});
    }
    ExpSum whole;
    long double expected = 0;
    int32_t top = -1'000'000;
    for (const Term& term : terms) {
      whole.Add(term.mantissa, term.exponent);
      top = std::max(top, term.exponent);
    }
    for (const Term& term : terms) {
      expected += std::ldexp(static_cast<long double>(term.mantissa), term.exponent - top);
    }
    CAPTURE(spread);
    const double log = static_cast<double>(std::log2(expected)) + top - ExpSum::kMantissaBits;
    CHECK(std::abs(whole.Log2() - log) < 1e-11 * std::max(1.0, std::abs(log)));
    for (int trial = 0; trial < 20; ++trial) {
      for (size_t i = terms.size(); i > 1; --i) std::swap(terms[i - 1], terms[rng.Below(i)]);
      std::vector<ExpSum> parts(1 + rng.Below(7));
      for (const Term& term : terms) {
        parts[rng.Below(parts.size())].Add(term.mantissa, term.exponent);
      }
      ExpSum merged;
      for (const ExpSum& part : parts) merged.Merge(part);
      REQUIRE(SameBits(merged.Log2(), whole.Log2()));
    }
  }
  ExpSum none, spoiled;
  CHECK(none.Log2() == -INFINITY);
  spoiled.Spoil();
  spoiled.Add(1u << 30, 5);
  none.Merge(spoiled);
  CHECK(std::isnan(none.Log2()));
}

TEST_CASE("powers of two have the same bits on every instruction set, and are right") {
  Rng rng(42);
  std::vector<double> x = {0, 0.5, -0.5, 1, -1, 0.49999999999999994, 1 << 28, -(1 << 28), -1100};
  for (int i = 0; i < 1000; ++i) x.push_back(rng.Normal() * std::exp2(rng.Normal() * 4));
  std::vector<double> first(x.size());
  std::vector<int32_t> first_exponents(x.size());
  bool any = false;
  ForEachSimdTarget([&] {
    for (const size_t count : {size_t{1}, size_t{7}, x.size()}) {
      std::vector<double> mantissas(count);
      std::vector<int32_t> exponents(count);
      Exp2Parts(x.data(), static_cast<int64_t>(count), mantissas.data(), exponents.data());
      for (size_t i = 0; i < count; ++i) {
        CAPTURE(x[i]);
        const double expected = std::exp2(x[i] - std::nearbyint(x[i]));
        REQUIRE(std::abs(mantissas[i] / expected - 1) < 1e-15);
        REQUIRE(exponents[i] == std::nearbyint(x[i]));
        if (any) REQUIRE(SameBits(mantissas[i], first[i]));
      }
      if (!any && count == x.size()) {
        first = mantissas;
        any = true;
      }
    }
  });
}

struct Problem {
  int64_t rows, q_begin, keys;
  int group, kv_heads, dim;
  DType dtype;
};

Tensor Random(Rng& rng, DType dtype, int64_t tokens, int64_t heads, int64_t dim) {
  Tensor tensor(dtype, tokens, heads, dim);
  for (int64_t i = 0; i < tokens * heads * dim; ++i) {
    const float x = rng.Normal();
    Convert(&x, DType::kF32, tensor.data() + static_cast<size_t>(i) * SizeOf(dtype), dtype, 1);
  }
  return tensor;
}

TEST_CASE("votes are the reference's weights, alike on every instruction set and in any parts") {
  Rng rng(43);
  const Problem problems[] = {
      {1, 299, 300, 1, 1, 8, DType::kF32},    {32, 268, 300, 4, 2, 128, DType::kBF16},
      {5, 0, 64, 3, 2, 24, DType::kF16},      {70, 100, 129, 2, 1, 72, DType::kF32},
      {9, 1000, 190, 2, 3, 64, DType::kBF16}, {130, 0, 130, 1, 2, 16, DType::kF32},
  };
  for (const Problem& of : problems) {
    const Tensor k = Random(rng, of.dtype, of.keys, of.kv_heads, of.dim);
    const Tensor q = Random(rng, of.dtype, of.rows, int64_t{of.kv_heads} * of.group, of.dim);
    const KvTable table = KvTable::FromTensors(k, k);
    const SelectKeys keys{.kv = &table, .space = &HostMemory()};
    std::vector<int64_t> blocks(static_cast<size_t>(BlocksOf(of.keys)));
    std::iota(blocks.begin(), blocks.end(), 0);
    const float scale = 2.0f / std::sqrt(static_cast<float>(of.dim));
    for (int kv_head = 0; kv_head < of.kv_heads; ++kv_head) {
      CAPTURE(of.rows, of.q_begin, of.keys, of.dim, kv_head);
      const std::vector<double> expected =
          ReferenceVotes(q, of.q_begin, k, kv_head, of.keys, scale);
      std::vector<float> first;
      ForEachSimdTarget([&] {
        const ColumnQueries queries(q.view().Heads(kv_head * of.group, of.group), of.q_begin,
                                    of.keys, scale);
        std::vector<ExpSum> sums(static_cast<size_t>(of.rows * of.group));
        const size_t cut = rng.Below(blocks.size() + 1);
        const absl::Span<const int64_t> all(blocks);
        for (const auto part : {all.subspan(cut), all.subspan(0, cut)}) {
          REQUIRE(queries.AddSums(keys, kv_head, part, absl::MakeSpan(sums)).ok());
        }
        std::vector<double> logs;
        for (const ExpSum& sum : sums) logs.push_back(sum.Log2());
        std::vector<float> votes(static_cast<size_t>(of.keys));
        REQUIRE(queries.Votes(keys, kv_head, blocks, logs, votes.data()).ok());
        if (first.empty()) first = votes;
        REQUIRE(std::memcmp(votes.data(), first.data(), votes.size() * sizeof(float)) == 0);
      });
      for (size_t i = 0; i < first.size(); ++i) {
        REQUIRE(std::abs(first[i] - expected[i]) < 1e-6 * std::max(1e-3, expected[i]));
      }
    }
  }
}

TEST_CASE("weights along diagonals are the reference's, of the same bits however keys are cut") {
  Rng rng(45);
  const Problem problems[] = {
      {1, 299, 300, 1, 1, 8, DType::kF32},   {64, 236, 300, 4, 2, 64, DType::kBF16},
      {5, 0, 64, 3, 2, 24, DType::kF16},     {70, 59, 129, 2, 1, 72, DType::kF32},
      {9, 100, 190, 2, 1, 32, DType::kBF16}, {130, 0, 130, 1, 2, 16, DType::kF32},
  };
  for (const Problem& of : problems) {
    const Tensor k = Random(rng, of.dtype, of.keys, of.kv_heads, of.dim);
    const Tensor q = Random(rng, of.dtype, of.rows, int64_t{of.kv_heads} * of.group, of.dim);
    const KvTable table = KvTable::FromTensors(k, k);
    const SelectKeys keys{.kv = &table, .space = &HostMemory()};
    const int kv_head = of.kv_heads - 1;
    const float scale = 2.0f / std::sqrt(static_cast<float>(of.dim));
    CAPTURE(of.rows, of.q_begin, of.keys, of.dim);
    std::vector<std::vector<float>> columns;       // by target and cut, [group, keys]
    std::vector<std::vector<uint64_t>> distances;  // [group, keys]
    ForEachSimdTarget([&] {
      const ColumnQueries queries(q.view().Heads(kv_head * of.group, of.group), of.q_begin, of.keys,
                                  scale);
      std::vector<ExpSum> sums(static_cast<size_t>(of.rows * of.group));
      std::vector<int64_t> blocks(static_cast<size_t>(BlocksOf(of.keys)));
      std::iota(blocks.begin(), blocks.end(), 0);
      REQUIRE(queries.AddSums(keys, kv_head, blocks, absl::MakeSpan(sums)).ok());
      std::vector<double> logs;
      for (const ExpSum& sum : sums) logs.push_back(sum.Log2());
      auto& by_key = columns.emplace_back(static_cast<size_t>(of.group * of.keys));
      auto& by_distance = distances.emplace_back(by_key.size());
      // Each block on its own, the last one first.
      for (const int64_t block : std::vector<int64_t>(blocks.rbegin(), blocks.rend())) {
        const int64_t begin = block * kBlockTokens;
        const int64_t tokens = std::min(kBlockTokens, of.keys - begin);
        std::vector<float> column(static_cast<size_t>(of.group * tokens));
        std::vector<uint64_t> diagonal(static_cast<size_t>(of.group * queries.diagonals()), 7);
        REQUIRE(
            queries.Diagonals(keys, kv_head, {block}, logs, column.data(), diagonal.data()).ok());
        for (int64_t head = 0; head < of.group; ++head) {
          std::copy_n(column.data() + head * tokens, tokens,
                      by_key.data() + head * of.keys + begin);
          for (int64_t j = 0; j < queries.diagonals(); ++j) {
            const int64_t distance = of.q_begin - begin - kBlockTokens + 1 + j;
            const uint64_t weight = diagonal[static_cast<size_t>(head * queries.diagonals() + j)];
            if (distance < 0) REQUIRE(weight == 0);
            if (distance >= 0) by_distance[head * of.keys + distance] += weight;
          }
        }
      }
      REQUIRE(std::memcmp(by_key.data(), columns[0].data(), by_key.size() * sizeof(float)) == 0);
      REQUIRE(by_distance == distances[0]);
    });
    for (int head = 0; head < of.group; ++head) {
      const ReferenceWeights expected =
          ReferenceDiagonals(q, of.q_begin, kv_head * of.group + head, k, kv_head, of.keys, scale);
      for (int64_t i = 0; i < of.keys; ++i) {
        const auto at = static_cast<size_t>(head * of.keys + i);
        REQUIRE(std::abs(columns[0][at] - expected.by_key[i]) <
                1e-6 * std::max(1e-3, expected.by_key[i]));
        const double weight = static_cast<double>(expected.by_distance[i]) * 0x1p-52;
        REQUIRE(std::abs(static_cast<double>(distances[0][at]) * 0x1p-52 - weight) <
                1e-6 * std::max(1e-3, weight));
      }
    }
  }
}

TEST_CASE("weights of spans are sums of those by distance, exactly, and keys' sums those of rows") {
  Rng rng(46);
  const Problem problems[] = {
      {1, 299, 300, 1, 1, 8, DType::kF32},    {64, 236, 300, 4, 2, 64, DType::kBF16},
      {128, 190, 318, 2, 1, 24, DType::kF16}, {128, 385, 700, 1, 2, 16, DType::kF32},
      {300, 0, 300, 2, 1, 8, DType::kF32},    {66, 127, 193, 1, 1, 8, DType::kF32},
  };
  for (const Problem& of : problems) {
    const Tensor k = Random(rng, of.dtype, of.keys, of.kv_heads, of.dim);
    const Tensor q = Random(rng, of.dtype, of.rows, int64_t{of.kv_heads} * of.group, of.dim);
    const KvTable table = KvTable::FromTensors(k, k);
    const SelectKeys keys{.kv = &table, .space = &HostMemory()};
    CAPTURE(of.rows, of.q_begin, of.keys, of.dim);
    const ColumnQueries queries(q.view().Heads(0, of.group), of.q_begin, of.keys, 0.7f);
    std::vector<ExpSum> sums(static_cast<size_t>(of.rows * of.group));
    std::vector<int64_t> blocks(static_cast<size_t>(BlocksOf(of.keys)));
    std::iota(blocks.begin(), blocks.end(), 0);
    REQUIRE(queries.AddSums(keys, 0, blocks, absl::MakeSpan(sums)).ok());
    std::vector<double> logs;
    for (const ExpSum& sum : sums) logs.push_back(sum.Log2());
    const int64_t count = ColumnQueries::SpanWeights(of.rows);
    for (const int64_t block : blocks) {
      const int64_t begin = block * kBlockTokens, tokens = std::min(kBlockTokens, of.keys - begin);
      std::vector<float> column(static_cast<size_t>(of.group * tokens)), key_sums(of.dim);
      std::vector<uint64_t> diagonal(static_cast<size_t>(of.group * queries.diagonals()));
      std::vector<uint64_t> weights(static_cast<size_t>(of.group * count), 7);
      REQUIRE(queries.Diagonals(keys, 0, {block}, logs, column.data(), diagonal.data()).ok());
      REQUIRE(queries.Spans(keys, 0, {block}, logs, weights.data(), key_sums.data()).ok());
      for (int64_t head = 0; head < of.group; ++head) {
        std::vector<uint64_t> expected(static_cast<size_t>(count));
        for (int64_t j = 0; j < queries.diagonals(); ++j) {
          const uint64_t weight = diagonal[static_cast<size_t>(head * queries.diagonals() + j)];
          const int64_t distance = of.q_begin - begin - kBlockTokens + 1 + j;
          const int64_t span = distance / 128 - ColumnQueries::FirstSpan(of.q_begin, block);
          expected[0] += weight;
          if (weight > 0) expected.at(static_cast<size_t>(1 + span)) += weight;
        }
        REQUIRE(std::equal(expected.begin(), expected.end(), weights.begin() + head * count));
      }
      const int64_t seen = std::min(tokens, of.q_begin + of.rows - begin);
      for (int c = 0; c < of.dim; ++c) {
        double sum = 0;
        for (int64_t t = begin; t < begin + seen; ++t) {
          float value = 0;
          Convert(k.view().Row(t, 0) + c * SizeOf(of.dtype), of.dtype, &value, DType::kF32, 1);
          sum += value;
        }
        REQUIRE(key_sums[static_cast<size_t>(c)] == static_cast<float>(sum));
      }
    }
  }
}

TEST_CASE("a score that f32 does not hold leaves its query without an answer, and no other one") {
  Tensor k(DType::kF32, 70, 1, 8), q(DType::kF32, 2, 1, 8);
  k.f32()[69 * 8] = 1e30f;
  q.f32()[0] = 1e30f;
  const KvTable table = KvTable::FromTensors(k, k);
  const ColumnQueries queries(q, 68, 70, 1.0f);
  ExpSum sums[2];
  for (int round = 0; round < 2; ++round) {
    // The first query does not see the last key, until it stands there.
    const ColumnQueries at(q, 68 + round, 70, 1.0f);
    REQUIRE(at.AddSums({.kv = &table, .space = &HostMemory()}, 0, {0, 1}, sums).ok());
    CHECK(std::isnan(sums[0].Log2()) == (round == 1));
    CHECK(std::isfinite(sums[1].Log2()));
  }
}

TEST_CASE("the keys of most votes are kept, the lowest of equal ones, and the last ones") {
  Rng rng(44);
  for (int trial = 0; trial < 200; ++trial) {
    const int64_t keys = 1 + static_cast<int64_t>(rng.Below(90));
    std::vector<float> votes;
    for (int64_t i = 0; i < keys; ++i) votes.push_back(static_cast<float>(rng.Below(5)));
    KeepRule rule;
    rule.keep = 1 + static_cast<int64_t>(rng.Below(100));
    rule.recent = static_cast<int64_t>(rng.Below(static_cast<uint64_t>(rule.keep) + 1));
    rule.pool_width = 1 + 2 * static_cast<int>(rng.Below(5));
    CAPTURE(trial, keys, rule.keep, rule.recent, rule.pool_width);
    CHECK(KeysKept(votes, rule) ==
          ReferenceSnapKv({votes.begin(), votes.end()}, rule.keep, rule.recent, rule.pool_width));
  }
  // What lies beyond the ends, or among the last ones, counts for none.
  const KeepRule mean{.keep = 3, .recent = 1, .pool = VotePool::kMean, .pool_width = 3};
  CHECK(KeysKept({0, 4, 4, 0, 3, 9}, mean) == std::vector<int32_t>{1, 2, 5});
  CHECK(KeysKept({5, 0, 2, 2, 0, 9}, mean) == std::vector<int32_t>{0, 1, 5});
}

}  // namespace
}  // namespace annulus
