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

std::vector<int32_t> ReferenceNsa(const ReferenceQuery& query, int64_t topk, int64_t block) {
  const int64_t complete = (std::min(query.position, query.kv_tokens - 1) + 1) / block;
  const auto group = static_cast<int>(query.q.heads / query.k.heads);
  std::vector<double> sums(static_cast<size_t>(complete));
  for (int head = query.kv_head * group; head < (query.kv_head + 1) * group; ++head) {
    std::vector<double> weights;
    double largest = -INFINITY, total = 0;
    for (int64_t b = 0; b < complete; ++b) {
      double score = 0;
      for (int64_t c = 0; c < query.k.dim; ++c) {
        double mean = 0;
        for (int64_t t = b * block; t < (b + 1) * block; ++t) {
          mean += Value(query.k, t, query.kv_head, c) / static_cast<double>(block);
        }
        score += Value(query.q, query.row, head, c) * mean;
      }
      weights.push_back(static_cast<float>(score));
      largest = std::max(largest, weights.back());
    }
    const double root = std::sqrt(static_cast<double>(query.k.dim));
    for (double& weight : weights) total += weight = std::exp((weight - largest) / root);
    for (size_t b = 0; b < weights.size(); ++b) sums[b] += weights[b] / total;
  }
  return Highest(query, block, topk,
                 [&](int64_t first) { return sums[static_cast<size_t>(first / block)]; });
}

std::vector<int32_t> ReferenceXAttention(const ReferenceQuery& query, double threshold,
                                         int64_t stride, int64_t block) {
  const int64_t first = query.position;
  const int64_t end = std::min(first / block * block + block, first + query.q.tokens - query.row);
  const int64_t last_key = query.kv_tokens - 1, own = std::min(end - 1, last_key) / block;
  const double root = std::sqrt(static_cast<double>(query.k.dim)) * static_cast<double>(stride);
  std::vector<double> sums(static_cast<size_t>(own + 1));
  for (int64_t a = first / stride; a <= (end - 1) / stride; ++a) {
    std::vector<double> weights;
    double largest = -INFINITY, total = 0;
    for (int64_t b = 0; b <= std::min(a, last_key / stride); ++b) {
      double score = 0;
      for (int64_t i = 0; i < stride; ++i) {
        const int64_t q = a * stride + stride - 1 - i, k = b * stride + i;
        if (q < first || q >= end || k > last_key) continue;
        for (int64_t c = 0; c < query.k.dim; ++c) {
          score += Value(query.q, query.row + q - first, query.head, c) *
                   Value(query.k, k, query.kv_head, c);
        }
      }
      weights.push_back(static_cast<float>(score));
      largest = std::max(largest, weights.back());
    }
    for (double& weight : weights) total += weight = std::exp((weight - largest) / root);
    for (size_t b = 0; b < weights.size(); ++b) {
      sums[b * static_cast<size_t>(stride) / static_cast<size_t>(block)] += weights[b] / total;
    }
  }
  std::vector<std::pair<float, int32_t>> order;
  double total = 0, seen = 0;
  std::vector<int32_t> blocks;
  for (int32_t b = 0; b <= own; ++b) {
    const auto sum = static_cast<float>(sums[static_cast<size_t>(b)]);
    total += sum;
    if (b == 0 || b == own) {
      blocks.push_back(b);
      seen += sum;
    } else {
      order.emplace_back(-sum, b);
    }
  }
  std::sort(order.begin(), order.end());
  for (const auto& [negative, b] : order) {
    if (seen >= threshold * total) break;
    blocks.push_back(b);
    seen -= negative;
  }
  std::sort(blocks.begin(), blocks.end());
  return blocks;
}

std::vector<int32_t> ReferenceBiFormer(const ReferenceQuery& query, int64_t region, int64_t topk) {
  const int64_t first = query.position;
  const int64_t end =
      std::min(first / region * region + region, first + query.q.tokens - query.row);
  const auto group = static_cast<int>(query.q.heads / query.k.heads);
  std::vector<std::pair<float, int32_t>> order;
  for (int64_t r = 0; r < query.kv_tokens / region; ++r) {
    double score = 0;
    for (int head = 0; head < query.q.heads; ++head) {
      for (int64_t c = 0; c < query.k.dim; ++c) {
        double q = 0, k = 0;
        for (int64_t t = first; t < end; ++t) q += Value(query.q, query.row + t - first, head, c);
        for (int64_t t = r * region; t < (r + 1) * region; ++t) {
          k += Value(query.k, t, head / group, c);
        }
        score += q / static_cast<double>(end - first) * k / static_cast<double>(region);
      }
    }
    order.emplace_back(-static_cast<float>(score / query.q.heads), static_cast<int32_t>(r));
  }
  std::sort(order.begin(), order.end());
  order.resize(std::min(order.size(), static_cast<size_t>(topk)));
  std::vector<int32_t> seen;
  for (const auto& [negative, r] : order) seen.push_back(r);
  std::sort(seen.begin(), seen.end());
  return seen;
}

std::vector<int32_t> ReferenceSeer(const ReferenceQuery& query, int64_t budget, double threshold,
                                   int64_t block) {
  const int64_t last = std::min(query.position, query.kv_tokens - 1), own = last / block;
  std::vector<std::pair<float, int32_t>> order;
  double largest = -INFINITY, total = 0;
  for (int64_t row = 0; row < (last + 1) / block; ++row) {
    double score = 0;
    for (int64_t c = 0; c < query.k.dim; ++c) {
      score += Value(query.q, query.row, query.head, c) * Value(query.k, row, query.kv_head, c);
    }
    order.emplace_back(-static_cast<float>(score), static_cast<int32_t>(row));
    largest = std::max(largest, score);
  }
  const double root = std::sqrt(static_cast<double>(query.k.dim));
  for (const auto& [negative, row] : order) total += std::exp((-negative - largest) / root);
  std::vector<int32_t> seen = {static_cast<int32_t>(own)};
  std::sort(order.begin(), order.end());
  for (const auto& [negative, row] : order) {
    const double weight = std::exp((-negative - largest) / root) / total;
    const bool is_seen = budget > 0 ? std::ssize(seen) < std::max<int64_t>(1, budget / block)
                                    : static_cast<float>(weight) > static_cast<float>(threshold);
    if (row != own && is_seen) seen.push_back(row);
  }
  std::sort(seen.begin(), seen.end());
  return seen;
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
