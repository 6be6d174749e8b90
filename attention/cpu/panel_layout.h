// Where the panel kernels keep the rows of a tile: in panels of two vectors (the last one of one
// vector, if its rows fit), lane = row. Pure arithmetic.
#pragma once

#include <algorithm>
#include <cstddef>

#include "attention/cpu/kernels.h"

namespace annulus::cpu {

inline constexpr int kPanelVectors = 2;

struct Panel {
  int first = 0;    // its first row
  int vectors = 0;  // 1 or 2
};

// The panel of row `row` among `rows`, with `lanes` rows to a vector.
inline Panel PanelOf(int row, int rows, int lanes) {
  const int width = kPanelVectors * lanes;
  const int first = row / width * width;
  return {first, rows - first <= lanes ? 1 : kPanelVectors};
}

// The rows that the panels of `rows` rows have room for.
inline int PanelRows(int rows, int lanes) {
  const Panel last = PanelOf(rows - 1, rows, lanes);
  return last.first + last.vectors * lanes;
}

// Whether none of the tokens of a panel's rows sees a key of the block.
inline bool SeesNothing(const TileShape& shape, const KeyBlock& block, int first, int lanes) {
  if (block.masks == nullptr) return false;
  const Panel panel = PanelOf(first, shape.rows(), lanes);
  const int last = std::min(first + panel.vectors * lanes, shape.rows()) - 1;
  return std::all_of(block.masks + first / shape.heads, block.masks + last / shape.heads + 1,
                     [](uint64_t mask) { return mask == 0; });
}

// Where the packed values of the dims from c on begin, in a block of so many keys (or pairs of
// keys). Two spare ones keep what a vector writes beyond a piece, and pieces in different cache
// sets.
inline size_t PackedAt(int c, int keys) {
  constexpr int kSpareKeys = 2;
  return static_cast<size_t>(c) * static_cast<size_t>(keys + kSpareKeys);
}

// Kernel::floats of a panel kernel that packs values as so many keys (or pairs of keys), and q and
// keys as so many floats to a row.
inline TileFloats PanelFloats(const TileShape& shape, int lanes, int row_floats, int packed_keys) {
  const auto rows = static_cast<size_t>(PanelRows(shape.rows(), lanes));
  TileFloats floats;
  floats.q = rows * static_cast<size_t>(row_floats);
  floats.out = rows * static_cast<size_t>(shape.v_head_dim);
  floats.rows = rows;
  floats.scores = static_cast<size_t>(kBlockKeys * kPanelVectors * lanes);
  floats.keys = static_cast<size_t>(kBlockKeys * row_floats);
  floats.values = PackedAt(shape.v_head_dim, packed_keys);
  return floats;
}

// Kernel::get_out for an accumulator that lies [panel][v_head_dim][lane].
inline void GetPanelOut(const TileShape& shape, const TileMemory& tile, int lanes, float* out) {
  constexpr int kDims = 8;  // v_head_dim is a multiple of it; as many lines are read side by side
  const int dims = shape.v_head_dim;
  const int rows = shape.rows();
  for (int first = 0; first < rows; first += kPanelVectors * lanes) {
    const int width = PanelOf(first, rows, lanes).vectors * lanes;
    const int end = std::min(rows, first + width);
    const float* panel = tile.out + static_cast<ptrdiff_t>(first) * dims;
    for (int c = 0; c < dims; c += kDims) {
      for (int row = first; row < end; ++row) {
        const float* from = panel + c * width + (row - first);
        float* to = out + static_cast<ptrdiff_t>(row) * dims + c;
        for (int i = 0; i < kDims; ++i) to[i] = from[i * width];
      }
    }
  }
}

}  // namespace annulus::cpu
