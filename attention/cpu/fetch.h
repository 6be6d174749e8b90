// Asking for memory before it is needed. Nothing is read: any address is safe.
#pragma once

#include <cstddef>

#include "attention/cpu/kernels.h"

namespace annulus::cpu {

// Both sides of a block into L2, where it waits while the one before it is worked on.
inline void FetchBlock(const TileShape& shape, const KeyBlock& block) {
  const auto fetch = [](const std::byte* row, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
  };
  const size_t size = SizeOf(shape.kv_dtype);
  for (int r = 0; r < block.keys; ++r) {
    const size_t row = static_cast<size_t>(r) * size;
    fetch(block.k + row * block.k_row_stride, static_cast<size_t>(shape.head_dim) * size);
    fetch(block.v + row * block.v_row_stride, static_cast<size_t>(shape.v_head_dim) * size);
  }
}

}  // namespace annulus::cpu
