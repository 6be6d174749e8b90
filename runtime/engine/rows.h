// Rows: which query rows a set of query blocks stands for, in ascending order, clipped to the
// problem's query range, and where each block's rows begin in a tensor of exactly those rows.
// Immutable value.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "attention/block_set.h"
#include "attention/pattern.h"

namespace annulus {

class Rows {
 public:
  Rows() = default;
  // Blocks without a row in q_range are left out.
  Rows(const BlockSet& blocks, TokenRange q_range);

  int64_t count() const { return count_; }
  const std::vector<TokenRange>& ranges() const { return ranges_; }  // joined where they touch

  // The blocks that have rows, ascending: which, where its rows begin, how many they are.
  int64_t blocks() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t block(int64_t i) const { return blocks_[static_cast<size_t>(i)]; }
  int64_t offset(int64_t i) const { return offsets_[static_cast<size_t>(i)]; }
  int64_t rows(int64_t i) const { return offset(i + 1) - offset(i); }

  // The absolute position of a row.
  int64_t Position(int64_t row) const;

  // The index of `block`, or nullopt if it has no rows here.
  std::optional<int64_t> Find(int64_t block) const;
  bool Covers(const Rows& other) const;
  friend bool operator==(const Rows& a, const Rows& b) { return a.blocks_ == b.blocks_; }

 private:
  std::vector<int64_t> blocks_;
  std::vector<int64_t> offsets_;  // one more than blocks
  std::vector<TokenRange> ranges_;
  int64_t count_ = 0;
};

}  // namespace annulus
