// Who computes which query heads, so that work balances; private to sharding. A pure function.
//
// Heads go to head groups by weight, the heaviest first, each to the group that has least. A KV
// head stays whole where it fits, since every group that serves some of its query heads needs its
// pages. One that is too heavy is split by its query heads, and a query head that is too heavy by
// its rows. Heads that weigh about the same are handed out in ranges.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/ranges.h"

namespace annulus {

// A head's rows are cut in so many parts of equal work.
inline constexpr int kHeadParts = 1024;

// Query heads of a group, with the parts [part_begin, part_end) of their rows: all, unless it is
// one head alone.
struct HeadShare {
  HeadRange heads;
  int part_begin = 0;
  int part_end = kHeadParts;

  bool whole() const { return part_end - part_begin == kHeadParts; }
  friend bool operator==(const HeadShare&, const HeadShare&) = default;
};

// By head group: its shares, ascending. Each part of each head is in exactly one group.
using HeadShares = std::vector<std::vector<HeadShare>>;

// `work`: by query head; `group`: query heads per KV head, which divides their number. Unless
// `splits_rows` heads stay whole. No group gets more than 1.05 of the mean if rows may be split.
HeadShares AssignHeads(const std::vector<int64_t>& work, int group, int head_groups,
                       bool splits_rows);

}  // namespace annulus
