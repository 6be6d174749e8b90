// Asking for memory before it is needed.
#pragma once

#include <cstddef>

#include "attention/cpu/kernels.h"

namespace annulus::cpu {

// Keys, or values, of a block that decode works on between two requests for the next one, and that
// stay in L1 while several query rows read them.
inline constexpr int kFetchedKeys = 16;

// The block that comes next, fetched into L2 row by row while another is worked on: all at once
// would wait for each other. Does nothing where no block comes next.
class BlockFetcher {
 public:
  BlockFetcher() = default;
  BlockFetcher(const TileShape& shape, const KeyBlock* next) {
    if (next == nullptr) return;
    const size_t size = SizeOf(shape.kv_dtype);
    keys_ = next->keys;
    k_ = {next->k, next->k_row_stride * size, static_cast<size_t>(shape.head_dim) * size};
    v_ = {next->v, next->v_row_stride * size, static_cast<size_t>(shape.v_head_dim) * size};
  }

  // For memory that is read in its order: a block that lies behind this one's last value comes by
  // itself, and requests of our own would only disturb that.
  static BlockFetcher IfApart(const TileShape& shape, const KeyBlock& block, const KeyBlock* next) {
    if (next == nullptr) return BlockFetcher();
    const size_t rows = static_cast<size_t>(block.keys) * SizeOf(shape.kv_dtype);
    const bool adjoins = block.k + rows * block.k_row_stride == block.v &&
                         block.v + rows * block.v_row_stride == next->k;
    return adjoins ? BlockFetcher() : BlockFetcher(shape, next);
  }

  bool fetches() const { return keys_ > 0; }

  // Those of the rows [begin, end) that exist.
  void Keys(int begin, int end) const { Fetch(k_, begin, end); }
  void Values(int begin, int end) const { Fetch(v_, begin, end); }

 private:
  struct Rows {
    const std::byte* data = nullptr;
    size_t stride_bytes = 0;
    size_t size_bytes = 0;
  };

  void Fetch(const Rows& rows, int begin, int end) const {
    for (int r = begin; r < end && r < keys_; ++r) {
      const std::byte* row = rows.data + static_cast<size_t>(r) * rows.stride_bytes;
      for (size_t at = 0; at < rows.size_bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
    }
  }

  int keys_ = 0;
  Rows k_;
  Rows v_;
};

// Reads a byte of each line of a row, so that what comes next finds the row in L1 in whatever order
// it reads: memory is fast only where it is read in its order, which prefetching alone does not
// mend.
inline void Touch(const void* row, size_t bytes) {
  const auto* lines = static_cast<const volatile char*>(row);
  for (size_t at = 0; at < bytes; at += 64) static_cast<void>(lines[at]);
}

}  // namespace annulus::cpu
