#include "attention/select/softmax.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "attention/select/exp2.h"

namespace annulus {
namespace {

constexpr double kLeast = -1100;  // 2^kLeast is 0

}  // namespace

void Softmax(absl::Span<const float> scores, double scale, absl::Span<double> weights) {
  if (scores.empty()) return;
  const auto [least, most] = std::minmax_element(scores.begin(), scores.end());
  const float largest = scale < 0 ? *least : *most;  // once scaled
  const double factor = scale * std::numbers::log2e;
  std::vector<double> x(scores.size());
  std::vector<int32_t> exponents(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    x[i] = std::max((double{scores[i]} - largest) * factor, kLeast);
  }
  Exp2Parts(x.data(), static_cast<int64_t>(x.size()), weights.data(), exponents.data());
  double sum = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    sum += weights[i] = std::ldexp(weights[i], exponents[i]);
  }
  for (double& weight : weights) weight /= sum;
}

}  // namespace annulus
