#include "attention/reference/flexprefill.h"

#include <algorithm>
#include <cmath>

#include "attention/reference/vertical_slash.h"

namespace annulus {
namespace {

constexpr int64_t kBlock = 128;

// The mean of rows [from, to) of a head.
std::vector<float> MeanOf(const TensorView& rows, int64_t from, int64_t to, int head) {
  std::vector<float> mean;
  for (int64_t c = 0; c < rows.dim; ++c) {
    double sum = 0;
    for (int64_t t = from; t < to; ++t) {
      float value = 0;
      Convert(rows.Row(t, head) + static_cast<size_t>(c) * SizeOf(rows.dtype), rows.dtype, &value,
              DType::kF32, 1);
      sum += value;
    }
    mean.push_back(static_cast<float>(sum / static_cast<double>(to - from)));
  }
  return mean;
}

// The softmax of the scores that a mean query gives the means of the first `blocks` blocks of keys.
std::vector<double> Estimate(const std::vector<float>& q, const TensorView& k, int kv_head,
                             int64_t blocks, int64_t k_end, float scale) {
  std::vector<double> weights;
  for (int64_t block = 0; block < blocks; ++block) {
    const auto mean = MeanOf(k, block * kBlock, std::min(k_end, (block + 1) * kBlock), kv_head);
    double dot = 0;
    for (size_t c = 0; c < q.size(); ++c) dot += double{q[c]} * mean[c];
    weights.push_back(double{static_cast<float>(dot)} * scale);
  }
  const double most = *std::max_element(weights.begin(), weights.end());
  double sum = 0;
  for (double& weight : weights) sum += weight = std::exp(weight - most);
  for (double& weight : weights) weight /= sum;
  return weights;
}

// Marks the first place where `forced`, then the largest values, the lowest of equal ones, until
// `least` are marked and they have `share` of the sum.
std::vector<bool> Marked(const std::vector<float>& values, bool forced, double share,
                         int64_t least) {
  std::vector<bool> marked(values.size());
  double all = 0, seen = 0;
  for (const float value : values) all += value;
  for (int64_t n = 0; n < std::ssize(values) && (n < least || seen < share * all); ++n) {
    size_t best = 0;
    while (marked[best]) ++best;
    for (size_t i = best; !(forced && n == 0) && i < values.size(); ++i) {
      if (!marked[i] && values[i] > values[best]) best = i;
    }
    marked[best] = true;
    seen += values[best];
  }
  return marked;
}

double RootOfDivergence(const std::vector<double>& p, const std::vector<float>& q) {
  double left = 0, right = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double mean = 0.5 * (p[i] + q[i]);
    if (p[i] > 0) left += p[i] * std::log(p[i] / mean);
    if (q[i] > 0) right += q[i] * std::log(q[i] / mean);
  }
  return std::sqrt(std::max(0.0, 0.5 * left + 0.5 * right));
}

}  // namespace

ReferenceBlocks ReferenceFlexPrefill(const TensorView& q, int64_t q_begin, int head,
                                     const TensorView& k, int kv_head, float scale, double gamma,
                                     double tau, int64_t least_tokens) {
  const int64_t q_end = q_begin + q.tokens, last = std::min<int64_t>(128, q.tokens);
  const int64_t blocks = (q_end + kBlock - 1) / kBlock, first = q_begin / kBlock;
  const ReferenceWeights weights = ReferenceDiagonals(q.Tokens(q.tokens - last, last), q_end - last,
                                                      head, k, kv_head, q_end, scale);
  std::vector<double> by_key(static_cast<size_t>(blocks)), by_distance(by_key.size());
  for (int64_t i = 0; i < q_end; ++i) {
    by_key[i / kBlock] += weights.by_key[i] / static_cast<double>(last);
    by_distance[i / kBlock] +=
        static_cast<double>(weights.by_distance[i]) * 0x1p-52 / static_cast<double>(last);
  }
  const std::vector<float> columns(by_key.begin(), by_key.end());
  const std::vector<float> diagonals(by_distance.begin(), by_distance.end());
  const auto mean = MeanOf(q, q.tokens - last, q.tokens, head);
  const bool query_aware =
      RootOfDivergence(Estimate(mean, k, kv_head, blocks, q_end, scale), columns) < tau;
  const int64_t least = (least_tokens + kBlock - 1) / kBlock;
  const auto by_column = Marked(columns, true, query_aware ? 0 : gamma, least);
  const auto by_diagonal = Marked(diagonals, true, query_aware ? 0 : gamma, least);
  std::vector<float> pairs;
  for (int64_t i = first; i < blocks; ++i) {
    const auto row = MeanOf(q, std::max(q_begin, i * kBlock) - q_begin,
                            std::min(q_end, (i + 1) * kBlock) - q_begin, head);
    const auto of_row = Estimate(row, k, kv_head, i + 1, q_end, scale);
    pairs.insert(pairs.end(), of_row.begin(), of_row.end());
  }
  const auto by_pair = Marked(pairs, false, query_aware ? gamma : 0, 0);
  ReferenceBlocks shown{query_aware, {}};
  size_t pair = 0;
  for (int64_t i = first; i < blocks; ++i) {
    std::vector<bool>& row = shown.seen.emplace_back();
    for (int64_t j = 0; j <= i; ++j, ++pair) {
      row.push_back(by_column[j] || by_diagonal[i - j] || by_pair[pair]);
    }
    row.resize(static_cast<size_t>(blocks));
  }
  return shown;
}

}  // namespace annulus
