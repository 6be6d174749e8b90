// Made-up keys and queries of which some keys matter more than others, in bf16: keys have a drift
// that is common to neighbours, queries are near some key. Without either all keys are alike to a
// query, and nothing could be chosen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "annulus/tensor.h"
#include "base/rng.h"

namespace annulus {

inline void PutBf16(Tensor* to, int64_t at, float x) {
  reinterpret_cast<uint16_t*>(to->data())[at] = F32ToBF16(x);
}

// [tokens, heads, dim]: neighbours share half of what they are.
inline Tensor DriftingKeys(Rng& rng, int64_t tokens, int heads, int dim) {
  constexpr int64_t kDriftTokens = 64;  // that lie near one another
  Tensor keys(DType::kBF16, tokens, heads, dim);
  const int64_t row = int64_t{heads} * dim;
  std::vector<float> drift(static_cast<size_t>(row)), noise(4096);
  for (float& x : noise) x = rng.Normal();
  for (int64_t t = 0; t < tokens; ++t) {
    if (t % kDriftTokens == 0) {
      for (float& x : drift) x = rng.Normal();
    }
    const uint64_t from = rng.Next();
    for (int64_t i = 0; i < row; ++i) {
      const float own = noise[(from + static_cast<uint64_t>(i) * 7) % noise.size()];
      PutBf16(&keys, t * row + i, 0.7f * (drift[static_cast<size_t>(i)] + own));
    }
  }
  return keys;
}

// [1, heads, dim]: of each head near one of these keys, a random one of those from `first` on.
inline Tensor QueryNear(Rng& rng, const Tensor& keys, int heads, int64_t first = 0) {
  const auto dim = static_cast<int>(keys.dim());
  Tensor q(DType::kBF16, 1, heads, dim);
  const auto group = static_cast<int>(heads / keys.heads());
  for (int head = 0; head < heads; ++head) {
    const auto token =
        first + static_cast<int64_t>(rng.Below(static_cast<uint64_t>(keys.tokens() - first)));
    const std::byte* key = keys.view().Row(token, head / group);
    for (int c = 0; c < dim; ++c) {
      const float x = BF16ToF32(reinterpret_cast<const uint16_t*>(key)[c]);
      PutBf16(&q, int64_t{head} * dim + c, 1.5f * x + rng.Normal());
    }
  }
  return q;
}

}  // namespace annulus
