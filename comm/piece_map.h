// PieceMap: which pieces of a cut have come. Bytes are cut into pieces of one size, the last one
// shorter; no bytes are one piece of none. A piece counts if it is one of the cut and comes for the
// first time, so pieces that overlap, repeat or are missing never make a whole. UCX keeps no order
// between messages of different sizes, hence a map and not a count. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace annulus {

class PieceMap {
 public:
  PieceMap() = default;
  // May throw std::bad_alloc, for more than 64 pieces.
  PieceMap(size_t size_bytes, size_t piece_bytes)
      : size_bytes_(size_bytes),
        piece_bytes_(piece_bytes),
        missing_(std::max<size_t>(1, size_bytes / piece_bytes + (size_bytes % piece_bytes != 0))) {
    if (missing_ > 64) rest_.resize((missing_ - 1) / 64);
  }

  bool whole() const { return missing_ == 0; }

  // Takes the piece [offset, offset + size_bytes); false if it is none, or was taken before.
  bool Take(uint64_t offset, size_t size_bytes) {
    if (missing_ == 0 || offset > size_bytes_ || offset % piece_bytes_ != 0) return false;
    if (size_bytes != std::min<size_t>(piece_bytes_, size_bytes_ - offset)) return false;
    if (size_bytes == 0 && size_bytes_ != 0) return false;  // beyond the last one
    const uint64_t index = offset / piece_bytes_;
    uint64_t& word = index < 64 ? first_ : rest_[index / 64 - 1];
    const uint64_t bit = uint64_t{1} << (index % 64);
    if ((word & bit) != 0) return false;
    word |= bit;
    --missing_;
    return true;
  }

 private:
  size_t size_bytes_ = 0;
  size_t piece_bytes_ = 1;
  size_t missing_ = 0;
  uint64_t first_ = 0;
  std::vector<uint64_t> rest_;
};

}  // namespace annulus
