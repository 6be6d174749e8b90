// What patterns mean, written straight from the definitions, pair by pair, so that it shares
// nothing with the code under test.
#pragma once

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

namespace annulus {

using PairRule = std::function<bool(int64_t head, int64_t q, int64_t k)>;

inline PairRule CausalRule() {
  return [](int64_t, int64_t q, int64_t k) { return q >= k; };
}

inline PairRule WindowRule(int64_t left, int64_t right) {
  return [=](int64_t, int64_t q, int64_t k) { return q - k < left && k - q <= right; };
}

inline PairRule SinkRule(int64_t n) {
  return [=](int64_t, int64_t, int64_t k) { return k < n; };
}

inline PairRule DocsRule(std::vector<int64_t> lengths) {
  return [lengths = std::move(lengths)](int64_t, int64_t q, int64_t k) {
    int64_t end = 0;
    for (size_t i = 0; i + 1 < lengths.size(); ++i) {
      end += lengths[i];
      if (q < end || k < end) return q < end && k < end;
    }
    return true;
  };
}

inline PairRule S2Rule(int64_t block, int64_t local, int64_t stride, int64_t dense_heads,
                       int64_t step, int64_t offset, int64_t kv_heads) {
  return [=](int64_t head, int64_t q, int64_t k) {
    if (q < k) return false;
    if (head >= kv_heads - dense_heads) return true;
    const int64_t i = q / block, j = k / block;
    return i - j < local || (j + head * step + offset) % stride == 0;
  };
}

inline PairRule PowerRule(int64_t block, int64_t window, int64_t sink) {
  return [=](int64_t, int64_t q, int64_t k) {
    const int64_t d = q / block - k / block;
    return q >= k && (d < window || (d & (d - 1)) == 0 || k / block < sink);
  };
}

inline PairRule BoxRule(int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end) {
  return [=](int64_t, int64_t q, int64_t k) {
    return q_begin <= q && q < q_end && k_begin <= k && k < k_end;
  };
}

// Segments begin at shift + i·tokens; the one before `shift` is cut at 0.
inline PairRule SegmentsRule(int64_t tokens, int64_t shift) {
  return [=](int64_t, int64_t q, int64_t k) {
    const int64_t ahead = tokens - shift % tokens;
    return (q + ahead) / tokens == (k + ahead) / tokens;
  };
}

inline PairRule BandRule(int64_t block, int64_t n) {
  return [=](int64_t, int64_t q, int64_t k) { return k <= q && q / block - k / block < n; };
}

inline PairRule SlashRule(int64_t block, std::vector<int64_t> distances) {
  return [=](int64_t, int64_t q, int64_t k) {
    const int64_t d = q / block - k / block;
    return std::find(distances.begin(), distances.end(), d) != distances.end();
  };
}

// DKernel's relative rule: both overhangs beyond the local range, added, are on the stride.
inline PairRule RelativeS2Rule(int64_t block, int64_t left, int64_t right, int64_t stride) {
  return [=](int64_t, int64_t q, int64_t k) {
    const int64_t i = q / block, j = k / block;
    const int64_t before = i - j - left + 1 > 0 ? i - j - left + 1 : 0;
    const int64_t after = j - i - right + 1 > 0 ? j - i - right + 1 : 0;
    return (before + after) % stride == 0;
  };
}

}  // namespace annulus
