// Rows of unions and intersections whose parts do not all have shapes: block by block, which costs
// what a row visits. Private to the pattern's implementation; pure functions.
#pragma once

#include <vector>

#include "attention/pattern_node.h"

namespace annulus {

// As PatternNode::Row. A cell of a union that no single part fills counts as seen in part.
void RowOfUnion(const std::vector<NodePtr>& parts, const ShapeWindow& window,
                std::vector<TileRun>* out);
void RowOfIntersection(const std::vector<NodePtr>& parts, const ShapeWindow& window,
                       std::vector<TileRun>* out);

// The pairs of `node` within `window`, whose row is `tiles`.
int64_t PairsOfCells(const PatternNode& node, const std::vector<TileRun>& tiles,
                     const ShapeWindow& window);

}  // namespace annulus
