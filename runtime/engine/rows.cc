#include "runtime/engine/rows.h"

#include <algorithm>

namespace annulus {

Rows::Rows(const BlockSet& blocks, TokenRange q_range) {
  for (int64_t block : blocks.ToVector()) {
    const int64_t begin = std::max(block * kBlockTokens, q_range.begin);
    const int64_t end = std::min((block + 1) * kBlockTokens, q_range.end);
    if (begin >= end) continue;
    blocks_.push_back(block);
    offsets_.push_back(count_);
    count_ += end - begin;
    if (!ranges_.empty() && ranges_.back().end == begin) {
      ranges_.back().end = end;
    } else {
      ranges_.push_back({begin, end});
    }
  }
  offsets_.push_back(count_);
}

int64_t Rows::Position(int64_t row) const {
  size_t range = 0;
  for (; row >= ranges_[range].size(); ++range) row -= ranges_[range].size();
  return ranges_[range].begin + row;
}

std::optional<int64_t> Rows::Find(int64_t block) const {
  const auto at = std::lower_bound(blocks_.begin(), blocks_.end(), block);
  if (at == blocks_.end() || *at != block) return std::nullopt;
  return at - blocks_.begin();
}

bool Rows::Covers(const Rows& other) const {
  return std::includes(blocks_.begin(), blocks_.end(), other.blocks_.begin(), other.blocks_.end());
}

}  // namespace annulus
