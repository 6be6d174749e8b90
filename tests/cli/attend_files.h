// Files of one attention problem and its answer by definition, for tests of `annulus attend`.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "attention/pattern.h"
#include "tests/cli/program.h"

namespace annulus {

using test::TestTensor;

// The shapes are the smallest that cut blocks, heads and rows unevenly.
inline constexpr int64_t kTokens = 70;
inline constexpr int64_t kKvTokens = 330;
inline constexpr int64_t kHeads = 4;
inline constexpr int64_t kKvHeads = 2;
inline constexpr int64_t kDim = 16;
inline constexpr int64_t kVDim = 24;

struct Expected {
  std::vector<double> out;
  std::vector<double> lse;
  int64_t visited_pairs = 0;
};

// Attention by its definition. v_dim of k's dims stand for v if it is null.
inline Expected Attend(const TestTensor& q, const TestTensor& k, const TestTensor* v, int64_t v_dim,
                       const std::string& pattern_text, double scale,
                       int64_t q_start = kKvTokens - kTokens, TokenRange keys = {0, kKvTokens}) {
  const Pattern pattern = Pattern::Parse(pattern_text, kKvHeads).value();
  const TestTensor& values = v != nullptr ? *v : k;
  Expected expected;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t h = 0; h < kHeads; ++h) {
      const int64_t g = h / (kHeads / kKvHeads);
      std::vector<double> sum(v_dim, 0);
      double total = 0;
      for (int64_t key = keys.begin; key < keys.end; ++key) {
        if (!pattern.Allows(static_cast<int>(g), q_start + t, key)) continue;
        ++expected.visited_pairs;
        double score = 0;
        for (int64_t i = 0; i < kDim; ++i) {
          score += double{q.values[(t * kHeads + h) * kDim + i]} *
                   k.values[(key * kKvHeads + g) * kDim + i];
        }
        const double weight = std::exp(scale * score);
        total += weight;
        for (int64_t i = 0; i < v_dim; ++i) {
          sum[i] += weight * values.values[(key * kKvHeads + g) * values.shape[2] + i];
        }
      }
      for (const double x : sum) expected.out.push_back(total == 0 ? 0 : x / total);
      expected.lse.push_back(std::log(total));
    }
  }
  return expected;
}

inline double Distance(const std::vector<float>& values, const std::vector<double>& expected) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isinf(expected[i]) && values[i] == expected[i]) continue;
    worst = std::max(worst, std::fabs(values[i] - expected[i]));
  }
  return worst;
}

// Files of one problem in a folder.
struct Files {
  explicit Files(DType dtype = DType::kF32) {
    Rng rng(8);
    q = TestTensor::Random(rng, dtype, {kTokens, kHeads, kDim});
    k = TestTensor::Random(rng, dtype, {kKvTokens, kKvHeads, kDim});
    v = TestTensor::Random(rng, dtype, {kKvTokens, kKvHeads, kVDim});
    test::WriteBytes(folder / "q.npy", q.Npy());
    test::WriteBytes(folder / "k.npy", k.Npy());
    test::WriteBytes(folder / "v.npy", v.Npy());
    test::WriteBytes(folder / "all.safetensors", test::Safetensors({{"q", q}, {"k", k}, {"v", v}}));
  }

  // attend's arguments with some of them given otherwise; an empty value leaves the option out.
  Arguments Args(const std::map<std::string, std::string>& changes = {}) const {
    std::map<std::string, std::string> options = {
        {"--q", folder / "q.npy"},     {"--k", folder / "k.npy"},     {"--v", folder / "v.npy"},
        {"--out", folder / "out.npy"}, {"--lse", folder / "lse.npy"}, {"--pattern", "causal"}};
    for (const auto& [name, value] : changes) options[name] = value;
    Arguments args = {"attend", "--json"};
    for (const auto& [name, value] : options) {
      if (!value.empty()) args.insert(args.end(), {name, value});
    }
    return args;
  }

  test::TempFolder folder;
  TestTensor q;
  TestTensor k;
  TestTensor v;
};

}  // namespace annulus
