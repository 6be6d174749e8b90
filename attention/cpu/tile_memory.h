// Where the memory of a tile comes from: one buffer that a thread keeps, cut as a kernel asks. The
// cut is pure arithmetic.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "annulus/buffer.h"
#include "attention/cpu/kernels.h"

namespace annulus::cpu {

// A part, up to where the next one may begin.
inline size_t AlignedFloats(size_t floats) {
  constexpr size_t kAlign = 64 / sizeof(float);
  return (floats + kAlign - 1) / kAlign * kAlign;
}

// Of all parts together.
inline size_t AllFloats(const TileFloats& floats) {
  return AlignedFloats(floats.q) + AlignedFloats(floats.out) + 2 * AlignedFloats(floats.rows) +
         AlignedFloats(floats.scores) + AlignedFloats(floats.keys) + AlignedFloats(floats.values);
}

// `take` gives memory for so many floats.
template <typename Take>
TileMemory CutTile(const TileFloats& floats, const Take& take) {
  TileMemory tile;
  tile.q = take(floats.q);
  tile.out = take(floats.out);
  tile.max = take(floats.rows);
  tile.sum = take(floats.rows);
  tile.scores = take(floats.scores);
  tile.keys = take(floats.keys);
  tile.values = take(floats.values);
  return tile;
}

// As it must be before the rows of q are set.
inline void ClearTile(const TileFloats& floats, const TileMemory& tile) {
  std::fill_n(tile.q, floats.q, 0.0f);
  std::fill_n(tile.out, floats.out, 0.0f);
  std::fill_n(tile.max, floats.rows, kNoScore);
  std::fill_n(tile.sum, floats.rows, 0.0f);
}

// Room for so many, in a vector that only grows.
template <typename T>
T* AtLeast(size_t count, std::vector<T>* room) {
  if (room->size() < count) room->resize(count);
  return room->data();
}

class TileRoom {
 public:
  // Valid until the next call.
  TileMemory Prepare(const TileFloats& floats) {
    const size_t bytes = AllFloats(floats) * sizeof(float);
    if (buffer_.size() < bytes) buffer_ = Buffer(bytes);
    auto* next = reinterpret_cast<float*>(buffer_.data());
    const TileMemory tile = CutTile(
        floats, [&next](size_t count) { return std::exchange(next, next + AlignedFloats(count)); });
    ClearTile(floats, tile);
    return tile;
  }

 private:
  Buffer buffer_;
};

}  // namespace annulus::cpu
