#include "attention/reference/columns.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace annulus {
namespace {

double Dot(const TensorView& q, int64_t row, int head, const TensorView& k, int64_t key,
           int kv_head) {
  double dot = 0;
  for (int64_t c = 0; c < q.dim; ++c) {
    float a = 0, b = 0;
    Convert(q.Row(row, head) + static_cast<size_t>(c) * SizeOf(q.dtype), q.dtype, &a, DType::kF32,
            1);
    Convert(k.Row(key, kv_head) + static_cast<size_t>(c) * SizeOf(k.dtype), k.dtype, &b,
            DType::kF32, 1);
    dot += double{a} * double{b};
  }
  return dot;
}

}  // namespace

std::vector<double> ReferenceVotes(const TensorView& q, int64_t q_begin, const TensorView& k,
                                   int kv_head, int64_t kv_tokens, float scale) {
  std::vector<double> votes(static_cast<size_t>(kv_tokens));
  const auto group = static_cast<int>(q.heads / k.heads);
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t row = 0; row < q.tokens; ++row) {
      const int64_t seen = std::min(kv_tokens, q_begin + row + 1);
      std::vector<double> weights;
      for (int64_t key = 0; key < seen; ++key) {
        weights.push_back(scale * Dot(q, row, head, k, key, kv_head));
      }
      const double most = *std::max_element(weights.begin(), weights.end());
      double sum = 0;
      for (double& weight : weights) sum += weight = std::exp(weight - most);
      for (int64_t key = 0; key < seen; ++key) votes[key] += weights[key] / sum;
    }
  }
  return votes;
}

std::vector<int32_t> ReferenceSnapKv(const std::vector<double>& votes, int64_t keep, int64_t recent,
                                     int64_t width) {
  const auto keys = static_cast<int64_t>(votes.size());
  std::vector<int32_t> kept;
  std::vector<std::pair<float, int32_t>> order;
  for (int64_t key = 0; key < keys; ++key) {
    if (keys <= keep || key >= keys - recent) {
      kept.push_back(static_cast<int32_t>(key));
      continue;
    }
    double pooled = 0;
    for (int64_t i = key - width / 2; i <= key + width / 2; ++i) {
      if (i >= 0 && i < keys - recent) pooled = std::max(pooled, votes[i]);
    }
    order.emplace_back(-static_cast<float>(pooled), static_cast<int32_t>(key));
  }
  std::sort(order.begin(), order.end());
  for (size_t i = 0; kept.size() < static_cast<size_t>(std::min(keep, keys)); ++i) {
    kept.push_back(order[i].second);
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

}  // namespace annulus
