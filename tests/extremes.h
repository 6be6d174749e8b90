// Inputs at the ends of what floats hold, and what an answer to them may be: right, within what f32
// arithmetic loses, or refused by row and head where something passes f32's range. Never silently
// wrong. Functions of their arguments.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "annulus/dtype.h"
#include "annulus/tensor.h"
#include "attention/merge_limit.h"
#include "attention/pattern.h"
#include "base/rng.h"

namespace annulus::test {

enum class Extreme {
  kNormal,
  kHuge,  // magnitudes near the largest
  kTiny,  // near the least normal one
  kSubnormal,
  kZeros,     // of both signs, a normal one here and there
  kEqual,     // one value all over
  kDominant,  // one row far larger than the others
  kEdges,     // the largest and the least, either sign
  kMixed,     // each value of another of these
};
inline constexpr int kExtremes = 9;

// A random value of this kind in units of `dtype`, which holds it.
inline float ExtremeValue(Rng& rng, Extreme kind, DType dtype) {
  const bool half = dtype == DType::kF16;
  const int top = half ? 15 : 127;                                    // exponents of the largest,
  const int least = half ? -14 : -126;                                // the least normal
  const int last = half ? -24 : dtype == DType::kBF16 ? -133 : -149;  // and the least value
  const float sign = rng.Below(2) == 0 ? 1.0f : -1.0f;
  const auto at = [&](int64_t low, int64_t high) {
    return std::ldexp(sign * (1 + static_cast<float>(rng.Uniform()) * 0.99f),
                      static_cast<int>(rng.Between(low, high)));
  };
  switch (kind) {
    case Extreme::kHuge:
      return at(top / 2, top);
    case Extreme::kTiny:
      return at(least, least / 2);
    case Extreme::kSubnormal:
      return at(last, least - 1);
    case Extreme::kZeros:
      return rng.Below(8) == 0 ? rng.Normal() : 0 * sign;
    case Extreme::kEdges:
      return rng.Below(2) == 0 ? at(top, top) : at(last, last);
    case Extreme::kMixed:
      return ExtremeValue(rng, static_cast<Extreme>(rng.Below(kExtremes - 1)), dtype);
    default:
      return rng.Normal();
  }
}

inline Tensor ExtremeTensor(Rng& rng, Extreme kind, DType dtype, int64_t tokens, int64_t heads,
                            int64_t dim) {
  Tensor tensor(dtype, tokens, heads, dim);
  const float equal = rng.Normal();
  const auto dominant = static_cast<int64_t>(rng.Below(static_cast<uint64_t>(tokens)));
  const float larger =
      std::ldexp(1.0f, static_cast<int>(rng.Between(3, dtype == DType::kF16 ? 10 : 60)));
  for (int64_t i = 0; i < tokens * heads * dim; ++i) {
    float value = kind == Extreme::kEqual ? equal : ExtremeValue(rng, kind, dtype);
    if (kind == Extreme::kDominant && i / (heads * dim) == dominant) value *= larger;
    std::byte* to = tensor.data() + static_cast<size_t>(i) * SizeOf(dtype);
    Convert(&value, DType::kF32, to, dtype, 1);
    if (!AllFinite(to, dtype, 1)) std::fill_n(to, SizeOf(dtype), std::byte{0});
  }
  return tensor;
}

// What is right for one row, in float64, and how far sums on the way to it reach.
struct RowTruth {
  std::vector<double> out;
  double lse = -std::numeric_limits<double>::infinity();
  double size = 0;         // ‖Σ weight·|v|‖
  double largest = 0;      // ‖v‖ of the largest key
  double reach = 0;        // the most that a score, or a part of one, can be, scaled or not
  double score_error = 0;  // what f32 may lose of a score
  double v_reach = 0;      // Σ |v| over the keys, of the largest dim
  double floor = 0;        // of out: what is lost where f32 ends below

  // Whether nothing on the way passes f32's range, however it is added up, and parts of the keys
  // can be weighed against each other, however they are cut.
  bool MustBeAnswered() const { return ScoresFit() && v_reach < 3.3e38; }
  bool ScoresFit() const {
    return reach < 3.3e38 && (std::isinf(lse) || std::fabs(lse) <= double{kMergeLseMax});
  }
};

inline std::vector<double> RowOf(const TensorView& tensor, int64_t token, int64_t head,
                                 int64_t dim) {
  std::vector<float> row(static_cast<size_t>(dim));
  Convert(tensor.Row(token, head), tensor.dtype, row.data(), DType::kF32, dim);
  return {row.begin(), row.end()};
}

// q's row against the keys that the pattern allows at `position`.
inline RowTruth TruthOf(const std::vector<double>& q, const TensorView& k, const TensorView& v,
                        int64_t v_dim, int kv_head, int64_t position, const Pattern& pattern,
                        double scale) {
  constexpr double kLog2e = 1.4426950408889634;
  RowTruth truth;
  truth.out.resize(static_cast<size_t>(v_dim));
  struct Key {
    double score;
    std::vector<double> v;
  };
  std::vector<Key> keys;
  std::vector<double> sums(static_cast<size_t>(v_dim));
  for (const double x : q) truth.reach = std::max(truth.reach, std::fabs(x * scale) * kLog2e);
  for (int64_t t = 0; t < k.tokens; ++t) {
    if (!pattern.Allows(kv_head, position, t)) continue;
    const std::vector<double> key = RowOf(k, t, kv_head, k.dim);
    Key& seen = keys.emplace_back(Key{0, RowOf(v, t, kv_head, v_dim)});
    double all = 0;
    double keys_size = 0;
    for (size_t c = 0; c < q.size(); ++c) {
      seen.score += scale * q[c] * key[c];
      all += std::fabs(q[c] * key[c]);
      keys_size += std::fabs(key[c]);
    }
    const double scaled = all * std::fabs(scale);
    truth.reach = std::max({truth.reach, all, scaled * kLog2e});
    // Roundings of products and sums, and what ends below the least subnormal, scaled or not.
    truth.score_error =
        std::max(truth.score_error,
                 scaled * 6e-8 * (4 + static_cast<double>(q.size())) + 0x1p-149 * keys_size +
                     0x1p-149 * static_cast<double>(q.size()) * (1 + std::fabs(scale)));
    double norm = 0;
    for (size_t c = 0; c < seen.v.size(); ++c) {
      norm += seen.v[c] * seen.v[c];
      sums[c] += std::fabs(seen.v[c]);
      truth.v_reach = std::max(truth.v_reach, sums[c]);
    }
    truth.largest = std::max(truth.largest, std::sqrt(norm));
  }
  if (keys.empty()) return truth;
  for (const Key& key : keys) truth.lse = std::max(truth.lse, key.score);
  const double top = truth.lse;
  double sum = 0;
  std::vector<double> sizes(truth.out.size());
  for (const Key& key : keys) {
    const double weight = std::exp(key.score - top);
    sum += weight;
    for (size_t c = 0; c < key.v.size(); ++c) {
      truth.out[c] += weight * key.v[c];
      sizes[c] += weight * std::fabs(key.v[c]);
    }
  }
  for (double& x : truth.out) x /= sum;
  truth.lse = top + std::log(sum);
  for (const double size : sizes) truth.size += size / sum * (size / sum);
  truth.size = std::sqrt(truth.size);
  truth.floor =
      0x1p-149 * std::sqrt(static_cast<double>(v_dim)) * static_cast<double>(4 + keys.size());
  return truth;
}

// Empty, or what is wrong with a row that was answered. `rounding`: what out may lose of ‖Σ p·|v|‖
// to roundings other than the scores'.
inline std::string WrongWith(const RowTruth& truth, const float* out, float lse, double rounding) {
  const bool nothing = std::isinf(truth.lse);
  if (nothing || std::isinf(lse)) {
    const bool zero = std::all_of(out, out + truth.out.size(), [](float x) { return x == 0; });
    return nothing && lse == truth.lse && zero ? "" : "lse is " + std::to_string(lse);
  }
  const double lse_error = std::fabs(lse - truth.lse);
  if (!(lse_error <= 1e-5 + 1e-6 * std::fabs(truth.lse) + truth.score_error)) {
    return "lse is " + std::to_string(lse) + ", expected " + std::to_string(truth.lse);
  }
  double wrong = 0;
  for (size_t c = 0; c < truth.out.size(); ++c) {
    wrong += (out[c] - truth.out[c]) * (out[c] - truth.out[c]);
  }
  // Scores that are off by e put weights off by a factor of exp(2·e) at most.
  const double weights = std::expm1(std::min(2 * truth.score_error, 50.0));
  const double allowed =
      rounding * truth.size + truth.floor + std::min(weights * truth.size, 2 * truth.largest);
  return std::sqrt(wrong) <= allowed * 1.001
             ? ""
             : "out is off by " + std::to_string(std::sqrt(wrong) / truth.size) + " of its size";
}

}  // namespace annulus::test
