#include "attention/reference/vertical_slash.h"

#include <algorithm>
#include <cmath>

namespace annulus {
namespace {

double At(const TensorView& rows, int64_t token, int head, int64_t dim) {
  float value = 0;
  Convert(rows.Row(token, head) + static_cast<size_t>(dim) * SizeOf(rows.dtype), rows.dtype, &value,
          DType::kF32, 1);
  return value;
}

// Marks the `forced` first places and then the largest values, the lowest of equal ones, until
// `count` are marked.
template <typename Value>
std::vector<bool> Marked(std::vector<Value> values, size_t count, size_t forced) {
  std::vector<bool> marked(values.size());
  for (size_t n = 0; n < std::min(count, values.size()); ++n) {
    size_t best = n;
    for (size_t i = 0; n >= forced && i < values.size(); ++i) {
      if (!marked[i] && (marked[best] || values[i] > values[best])) best = i;
    }
    marked[best] = true;
  }
  return marked;
}

}  // namespace

ReferenceWeights ReferenceDiagonals(const TensorView& q, int64_t q_begin, int head,
                                    const TensorView& k, int kv_head, int64_t kv_tokens,
                                    float scale) {
  ReferenceWeights weights{std::vector<double>(static_cast<size_t>(kv_tokens)),
                           std::vector<uint64_t>(static_cast<size_t>(kv_tokens))};
  for (int64_t row = 0; row < q.tokens; ++row) {
    const int64_t position = q_begin + row;
    std::vector<double> of_row;
    for (int64_t key = 0; key <= position; ++key) {
      double dot = 0;
      for (int64_t c = 0; c < q.dim; ++c) dot += At(q, row, head, c) * At(k, key, kv_head, c);
      of_row.push_back(scale * dot);
    }
    const double most = *std::max_element(of_row.begin(), of_row.end());
    double sum = 0;
    for (double& weight : of_row) sum += weight = std::exp(weight - most);
    for (int64_t key = 0; key <= position; ++key) {
      weights.by_key[key] += of_row[key] / sum;
      weights.by_distance[position - key] +=
          static_cast<uint64_t>(std::llround(of_row[key] / sum * 0x1p52));
    }
  }
  return weights;
}

std::vector<std::vector<bool>> ReferenceMInference(const ReferenceWeights& weights,
                                                   int64_t verticals, int64_t slashes,
                                                   int64_t kv_tokens) {
  std::vector<float> by_key;
  for (const double weight : weights.by_key) by_key.push_back(static_cast<float>(weight));
  const auto keys = Marked(by_key, static_cast<size_t>(std::max<int64_t>(verticals, 30)), 30);
  const auto lines =
      Marked(weights.by_distance, static_cast<size_t>(std::max<int64_t>(slashes, 50)), 100);
  std::vector<std::vector<bool>> seen(static_cast<size_t>(kv_tokens));
  for (int64_t q = 0; q < kv_tokens; ++q) {
    for (int64_t k = 0; k < kv_tokens; ++k) {
      bool shown = keys[static_cast<size_t>(k)];
      for (int64_t d = 0; d < kv_tokens; ++d) {
        const int64_t begin = q / 64 * 64 - d;
        shown |= lines[static_cast<size_t>(d)] && begin <= k && k < begin + 64;
      }
      seen[static_cast<size_t>(q)].push_back(shown && k <= q);
    }
  }
  return seen;
}

}  // namespace annulus
