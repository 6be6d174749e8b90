// Ranges of tokens and of heads. Plain values.
#pragma once

#include <algorithm>
#include <cstdint>

namespace annulus {

// Token positions [begin, end), absolute.
struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  friend bool operator==(const TokenRange&, const TokenRange&) = default;
};

// Heads [first, first + count), global numbering: query heads unless KV heads are said.
struct HeadRange {
  int first = 0;
  int count = 0;

  int end() const { return first + count; }
  friend bool operator==(const HeadRange&, const HeadRange&) = default;
};

inline HeadRange Intersect(HeadRange a, HeadRange b) {
  const int first = std::max(a.first, b.first);
  return {first, std::max(0, std::min(a.end(), b.end()) - first)};
}

}  // namespace annulus
