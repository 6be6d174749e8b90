// Rules over grids of tokens in raster order, written from the papers.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "tests/attention/pattern_rules.h"

namespace annulus {

// NATTEN's definition of one axis (SHI-Labs/NATTEN): a query's window [start, end) among the tokens
// of its own dilation group.
struct NaAxis {
  int64_t length = 1;
  int64_t window = 1;
  int64_t stride = 1;
  int64_t dilation = 1;
  bool causal = false;

  bool Allows(int64_t q, int64_t k) const {
    if (q % dilation != k % dilation) return false;
    const int64_t group_length = (length - q % dilation + dilation - 1) / dilation;
    const int64_t i = q / dilation;
    const int64_t left = window / 2, right = window / 2 + window % 2 - 1;
    int64_t start = 0, end = 0;
    if (causal) {
      int64_t leader = i / stride * stride + stride - 1;
      if (leader > group_length - 1) leader = group_length - 1;
      start = leader - window + 1 > 0 ? leader - window + 1 : 0;
      end = i + 1 < group_length ? i + 1 : group_length;
    } else {
      int64_t leader = i / stride * stride + stride / 2;
      if (leader > group_length - 1) leader = group_length - 1;
      start = leader - left > 0 ? leader - left : 0;
      if (leader + right >= group_length) start += group_length - right - leader - 1;
      end = start + window;
    }
    return start <= k / dilation && k / dilation < end;
  }
};

// The place on each axis; the last one is fastest.
inline std::vector<int64_t> PlaceOn(const std::vector<int64_t>& extents, int64_t token) {
  std::vector<int64_t> place(extents.size());
  for (size_t i = extents.size(); i-- > 0; token /= extents[i]) place[i] = token % extents[i];
  return place;
}

inline int64_t TokensOn(const std::vector<int64_t>& extents) {
  int64_t tokens = 1;
  for (const int64_t extent : extents) tokens *= extent;
  return tokens;
}

inline PairRule NaRule(std::vector<NaAxis> axes, int64_t extra) {
  std::vector<int64_t> extents;
  for (const NaAxis& axis : axes) extents.push_back(axis.length);
  const int64_t tokens = TokensOn(extents);
  return [=](int64_t, int64_t q, int64_t k) {
    if (k >= tokens) return k < tokens + extra;
    if (q >= tokens) return false;
    const std::vector<int64_t> a = PlaceOn(extents, q), b = PlaceOn(extents, k);
    for (size_t i = 0; i < axes.size(); ++i) {
      if (!axes[i].Allows(a[i], b[i])) return false;
    }
    return true;
  };
}

inline PairRule GridRule(int64_t height, int64_t width, int64_t n) {
  return [=](int64_t, int64_t q, int64_t k) {
    if (q >= height * width || k >= height * width) return false;
    return q / width % (height / n) == k / width % (height / n) &&
           q % width % (width / n) == k % width % (width / n);
  };
}

inline PairRule CrossRule(int64_t height, int64_t width, int64_t stripe, int64_t kv_heads) {
  return [=](int64_t head, int64_t q, int64_t k) {
    if (q >= height * width || k >= height * width) return false;
    if (2 * head < kv_heads) return q % width / stripe == k % width / stripe;
    return q / width / stripe == k / width / stripe;
  };
}

inline PairRule DiskRule(int64_t height, int64_t width, int64_t radius, int64_t text) {
  return [=](int64_t, int64_t q, int64_t k) {
    const int64_t end = text + height * width;
    if (q >= end || k >= end) return false;
    if (q < text || k < text) return true;
    const int64_t dy = (q - text) / width - (k - text) / width;
    const int64_t dx = (q - text) % width - (k - text) % width;
    return dy * dy + dx * dx < radius * radius;
  };
}

// `inner` over the raster order of the axes in another order.
inline PairRule OrderRule(std::vector<int64_t> extents, std::vector<int64_t> axes, PairRule inner) {
  const auto place = [extents, axes](int64_t token) {
    const std::vector<int64_t> from = PlaceOn(extents, token);
    int64_t at = 0;
    for (const int64_t axis : axes) at = at * extents[axis] + from[axis];
    return at;
  };
  return [tokens = TokensOn(extents), place, inner](int64_t h, int64_t q, int64_t k) {
    return q < tokens && k < tokens && inner(h, place(q), place(k));
  };
}

// `inner` over the order `place` of the first tokens.
inline PairRule PermuteRule(std::vector<int64_t> place, PairRule inner) {
  return [place, inner](int64_t h, int64_t q, int64_t k) {
    const auto tokens = static_cast<int64_t>(place.size());
    return q < tokens && k < tokens && inner(h, place[q], place[k]);
  };
}

}  // namespace annulus
