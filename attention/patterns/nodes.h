// What the nodes of the language's words share. Private to the pattern's implementation.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/pattern_node.h"

namespace annulus {

// Pattern blocks of `block` tokens that the rows of one query block can lie in.
constexpr int64_t GroupsMax(int64_t block) {
  return (kBlockTokens - 2) / block + 2;
}

// All cells of a window on and below the diagonal.
inline BlockBand BandOf(const ShapeWindow& window) {
  return {.q_begin = window.q_begin / kBlockTokens,
          .q_end = BlocksOf(window.q_end),
          .k_begin = window.k_begin / kBlockTokens,
          .k_end = BlocksOf(window.k_end),
          .d_min = 0,
          .d_max = kFarBlocks};
}

// segments(tokens,shift) with shift < tokens (docs.cc).
NodePtr MakeSegments(int64_t tokens, int64_t shift);

// Runs of rows whose shapes stand side by side in one wide list, and those that are counted one
// by one while no deadline is watched.
inline constexpr int64_t kWideRunsMax = 256;
inline constexpr int64_t kCountedRunsMax = int64_t{1} << 16;

// The pairs of a node whose shapes have none in common.
inline int64_t PairsOfDisjoint(const PatternNode& node, const ShapeWindow& window) {
  ShapeList shapes;
  node.AppendShapes(window, &shapes);
  int64_t pairs = 0;
  for (const Shape& shape : shapes) pairs += PairsOf(shape);
  return pairs;
}

// Equality of nodes of one kind is that of their numbers.
template <typename Node>
bool SameAs(const Node& node, const PatternNode& other) {
  const Node* same = dynamic_cast<const Node*>(&other);
  return same == &node || (same != nullptr && node.Key() == same->Key());
}

}  // namespace annulus
