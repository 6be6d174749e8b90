#include "attention/reference/select.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace annulus {
namespace {

double Value(const TensorView& tensor, int64_t token, int head, int64_t c) {
  float value = 0;
  Convert(tensor.Row(token, head) + static_cast<size_t>(c) * SizeOf(tensor.dtype), tensor.dtype,
          &value, DType::kF32, 1);
  return value;
}

// The own unit, and the `count` − 1 before it that score highest, the lowest first of equal ones.
std::vector<int32_t> Highest(const ReferenceQuery& query, int64_t unit, int64_t count,
                             const std::function<double(int64_t first)>& score) {
  const int64_t last_key = query.kv_tokens - 1;
  const int64_t own = (query.position < last_key ? query.position : last_key) / unit;
  std::vector<std::pair<float, int32_t>> order;
  for (int64_t u = 0; u < own; ++u) {
    order.emplace_back(-static_cast<float>(score(u * unit)), static_cast<int32_t>(u));
  }
  std::sort(order.begin(), order.end());
  std::vector<int32_t> seen = {static_cast<int32_t>(own)};
  for (size_t i = 0; i < order.size() && static_cast<int64_t>(i) < count - 1; ++i) {
    seen.push_back(order[i].second);
  }
  std::sort(seen.begin(), seen.end());
  return seen;
}

}  // namespace

std::vector<int32_t> ReferenceMoba(const ReferenceQuery& query, int64_t block, int64_t topk) {
  return Highest(query, block, topk, [&](int64_t first) {
    double score = 0;
    for (int64_t c = 0; c < query.k.dim; ++c) {
      double mean = 0;
      for (int64_t t = first; t < first + block; ++t) mean += Value(query.k, t, query.kv_head, c);
      score += Value(query.q, query.row, query.head, c) * mean / static_cast<double>(block);
    }
    return score;
  });
}

std::vector<int32_t> ReferenceQuest(const ReferenceQuery& query, int64_t budget, int64_t page) {
  return Highest(query, page, std::max<int64_t>(3, budget / page), [&](int64_t first) {
    double score = 0;
    for (int64_t c = 0; c < query.k.dim; ++c) {
      double least = INFINITY, largest = -INFINITY;
      for (int64_t t = first; t < first + page; ++t) {
        least = std::min(least, Value(query.k, t, query.kv_head, c));
        largest = std::max(largest, Value(query.k, t, query.kv_head, c));
      }
      const double x = Value(query.q, query.row, query.head, c);
      score += std::max(x * least, x * largest);
    }
    return score;
  });
}

std::vector<int32_t> ReferenceDsa(const ReferenceQuery& query, const float* weights, int64_t topk) {
  const int64_t last = std::min(query.position, query.kv_tokens - 1);
  std::vector<std::pair<float, int32_t>> order;
  for (int64_t s = 0; s <= last; ++s) {
    double score = 0;
    for (int64_t j = 0; j < query.q.heads; ++j) {
      double dot = 0;
      for (int64_t c = 0; c < query.k.dim; ++c) {
        dot += Value(query.q, query.row, static_cast<int>(j), c) * Value(query.k, s, 0, c);
      }
      score += weights[j] * std::max(0.0, dot);
    }
    order.emplace_back(-static_cast<float>(score), static_cast<int32_t>(s));
  }
  std::sort(order.begin(), order.end());
  std::vector<int32_t> seen;
  for (size_t i = 0; i < order.size() && static_cast<int64_t>(i) < topk; ++i) {
    seen.push_back(order[i].second);
  }
  std::sort(seen.begin(), seen.end());
  return seen;
}

std::vector<int32_t> ReferenceMsa(const ReferenceQuery& query, int64_t block, int64_t topk) {
  return Highest(query, block, topk, [&](int64_t first) {
    double best = -INFINITY;
    for (int64_t t = first; t < first + block; ++t) {
      double dot = 0;
      for (int64_t c = 0; c < query.k.dim; ++c) {
        dot += Value(query.q, query.row, query.head, c) * Value(query.k, t, 0, c);
      }
      best = std::max(best, dot);
    }
    return best;
  });
}

}  // namespace annulus
