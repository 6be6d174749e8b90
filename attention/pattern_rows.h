// From shapes to runs of 64-token blocks. Private to the pattern's implementation; pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/pattern.h"
#include "attention/pattern_shapes.h"

namespace annulus {

// The blocks that hold a pair of `shape`, as disjoint runs. A run is full if the shape holds every
// pair of queries `q` with the existing keys [0, kv_tokens) of its blocks. The shape's rows lie
// within q, its keys within the existing ones.
void AppendTiles(const Shape& shape, TokenRange q, int64_t kv_tokens, std::vector<TileRun>* out);

// The same for the union of the shapes: disjoint runs ordered by first block, `out` replaced. Puts
// the shapes in the order of their keys.
void TilesOfUnion(ShapeList* shapes, TokenRange q, int64_t kv_tokens, std::vector<TileRun>* out);

// Puts blocks that come in ascending order into runs: the longest one from each block on whose
// blocks are alike, so that runs do not interleave.
class RunMaker {
 public:
  // Appends to `out`; complete once Finish has been called.
  explicit RunMaker(std::vector<TileRun>* out) : out_(*out) {}

  void Add(int64_t block, bool full);
  void Finish();

 private:
  std::vector<TileRun>& out_;
  TileRun run_ = {{0, 0, 1}, false};
};

}  // namespace annulus
