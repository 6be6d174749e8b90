// Where the panel kernels keep the rows of a tile: in panels of two vectors (the last one of one
// vector, if its rows fit), lane = row. Pure arithmetic.
#pragma once

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

// Kernel::get_out for an accumulator that lies [panel][v_head_dim][lane].
inline void GetPanelOut(const TileShape& shape, const TileMemory& tile, int row, int lanes,
                        float* out) {
  const Panel panel = PanelOf(row, shape.rows(), lanes);
  const float* from = tile.out +
                      static_cast<size_t>(panel.first) * static_cast<size_t>(shape.v_head_dim) +
                      (row - panel.first);
  for (int c = 0; c < shape.v_head_dim; ++c) out[c] = from[c * panel.vectors * lanes];
}

}  // namespace annulus::cpu
