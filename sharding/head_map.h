// HeadMap: which query heads each head group serves, and so which KV heads it holds. Every query
// head is in one group; a KV head is held by each group that serves one of its query heads. A group
// may serve several ranges of heads, or none.
// Immutable value; copies share it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention/ranges.h"

namespace annulus {

// Several ranges, none of them empty, ascending, with heads between them that are in none.
using HeadRanges = std::vector<HeadRange>;

inline int CountOf(const HeadRanges& ranges) {
  int count = 0;
  for (const HeadRange& range : ranges) count += range.count;
  return count;
}

inline bool Contains(const HeadRanges& ranges, int head) {
  return std::any_of(ranges.begin(), ranges.end(), [head](const HeadRange& range) {
    return head >= range.first && head < range.end();
  });
}

// From the first of them to the last.
inline HeadRange SpanOf(const HeadRanges& ranges) {
  if (ranges.empty()) return {};
  return {ranges.front().first, ranges.back().end() - ranges.front().first};
}

template <typename Fn>
void ForEachHead(const HeadRanges& ranges, Fn fn) {
  for (const HeadRange& range : ranges) {
    for (int head = range.first; head < range.end(); ++head) fn(head);
  }
}

class HeadMap {
 public:
  HeadMap() = default;  // of no use before it is assigned

  // Query heads cut contiguously, as even as they go, so that with more groups than KV heads a KV
  // head is held by several, and with more groups than query heads some hold nothing.
  // heads % kv_heads == 0.
  static HeadMap Even(int groups, int heads, int kv_heads);

  // So that what groups hold is even, where `weights` says what each KV head weighs wherever it is
  // held. Heads go by weight, the heaviest first, each to the group that holds least. Where that is
  // not even, the heaviest are split by their query heads and held by several groups. The even cut
  // stays where it holds no group above 1.05 of the mean, or weights are about the same.
  static HeadMap ByWeight(int groups, int heads, const std::vector<int64_t>& weights);

  int groups() const { return static_cast<int>(data_->query.size()); }
  int heads() const { return data_->heads; }
  int kv_heads() const { return static_cast<int>(data_->first_holder.size()); }

  // Valid while some copy of this lives.
  const HeadRanges& QueryHeads(int group) const { return data_->query[static_cast<size_t>(group)]; }
  const HeadRanges& KvHeads(int group) const { return data_->kv[static_cast<size_t>(group)]; }
  // The first group that holds it.
  int FirstHolder(int kv_head) const { return data_->first_holder[static_cast<size_t>(kv_head)]; }

  friend bool operator==(const HeadMap& a, const HeadMap& b) {
    return a.data_ == b.data_ || *a.data_ == *b.data_;
  }

 private:
  struct Data {
    int heads = 0;
    std::vector<HeadRanges> query;  // by group
    std::vector<HeadRanges> kv;     // by group
    std::vector<int> first_holder;  // by KV head
    friend bool operator==(const Data&, const Data&) = default;
  };

  HeadMap(int heads, int kv_heads, std::vector<HeadRanges> query);

  std::shared_ptr<const Data> data_;
};

}  // namespace annulus
