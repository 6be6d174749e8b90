// What a node tells of a row, a cell and of many rows at once, worked out from its shapes.
#include <algorithm>

#include "attention/pattern_node.h"
#include "attention/pattern_rows.h"

namespace annulus {
namespace {

// The rows [q_begin, q_end) of a shape, which are part of one query block.
void AppendRow(Shape shape, int64_t q_begin, int64_t q_end, std::vector<BlockBand>* out) {
  shape.q_begin = q_begin;
  shape.q_end = q_end;
  if (!shape.Tighten()) return;
  const int64_t q = q_begin / kBlockTokens;
  out->push_back({.q_begin = q,
                  .q_end = q + 1,
                  .k_begin = shape.k_begin / kBlockTokens,
                  .k_end = BlocksOf(shape.k_end),
                  .d_min = -kFarBlocks,
                  .d_max = kFarBlocks});
}

// The cells of a shape without a comb.
void AppendBand(const Shape& shape, std::vector<BlockBand>* out) {
  const int64_t first = CeilDiv(shape.q_begin, kBlockTokens);
  const int64_t end = FloorDiv(shape.q_end, kBlockTokens);
  if (first * kBlockTokens > shape.q_begin) {
    AppendRow(shape, shape.q_begin, std::min(shape.q_end, first * kBlockTokens), out);
  }
  if (end >= first && end * kBlockTokens < shape.q_end) {
    AppendRow(shape, end * kBlockTokens, shape.q_end, out);
  }
  // Rows of whole query blocks see the keys [64·q − d_max, 64·q + 64 − d_min) among the shape's:
  // some, from the first of these query blocks to the last.
  const int64_t low = FloorDiv(shape.k_begin + shape.d_min - kBlockTokens, kBlockTokens) + 1;
  const int64_t high = CeilDiv(shape.k_end + shape.d_max, kBlockTokens);
  const BlockBand band{.q_begin = std::max(first, low),
                       .q_end = std::min(end, high),
                       .k_begin = shape.k_begin / kBlockTokens,
                       .k_end = BlocksOf(shape.k_end),
                       .d_min = CeilDiv(shape.d_min - kBlockTokens + 1, kBlockTokens),
                       .d_max = CeilDiv(shape.d_max, kBlockTokens)};
  if (band.q_begin < band.q_end) out->push_back(band);
}

}  // namespace

void PatternNode::Row(const ShapeWindow& window, std::vector<TileRun>* out) const {
  ShapeList shapes;
  AppendShapes(window, &shapes);
  TilesOfUnion(&shapes, {window.q_begin, window.q_end}, window.k_end, out);
}

void PatternNode::Mask(const ShapeWindow& window, int64_t q_block, int64_t k_block,
                       uint64_t mask[64]) const {
  std::fill(mask, mask + kBlockTokens, 0);
  ShapeList shapes;
  AppendShapes(window, &shapes);
  for (const Shape& shape : shapes) AddToMask(shape, q_block, k_block, mask);
}

bool PatternNode::AppendWide(const ShapeWindow&, ShapeList*) const {
  return false;
}

bool PatternNode::AppendBands(const ShapeWindow& window, std::vector<BlockBand>* out) const {
  ShapeList shapes;
  if (!AppendWide(window, &shapes)) return false;
  for (const Shape& shape : shapes) AppendBand(shape, out);
  return true;
}

absl::optional<int64_t> PatternNode::CountPairs(const ShapeWindow& window) const {
  ShapeList shapes;
  if (!AppendWide(window, &shapes)) return absl::nullopt;
  return PairsOfUnion(shapes);
}

bool PatternNode::AppendSeen(const ShapeWindow& window, ShapeList* out) const {
  return AppendWide(window, out);
}

}  // namespace annulus
