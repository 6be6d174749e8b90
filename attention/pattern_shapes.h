// Shapes: what a pattern looks like inside one 64-token query block. Every primitive is there a
// small union of shapes, a shape is query rows × key tokens × a band of distances, and shapes are
// closed under intersection. So rows, masks and counts come from a few numbers, never from walking
// tokens. Private to the pattern's implementation; plain values.
#pragma once

#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "absl/types/optional.h"
#include "attention/congruence.h"

namespace annulus {

// Beyond every position, and far enough from overflow to be added to one.
inline constexpr int64_t kFar = int64_t{1} << 60;

// The keys whose distance past `first` is below `length` modulo `period`; in both directions
// without end. period 0 stands for every key.
struct Comb {
  int64_t first = 0;
  int64_t length = 0;
  int64_t period = 0;

  bool all() const { return period == 0; }
  bool Contains(int64_t key) const { return all() || FloorMod(key - first, period) < length; }
  int64_t CountIn(int64_t begin, int64_t end) const;  // keys in [begin, end)
  int64_t NextFrom(int64_t key) const;                // the first key ≥ `key`
  int64_t LastTo(int64_t key) const;                  // the last key ≤ `key`
  friend bool operator==(const Comb&, const Comb&) = default;
};

// The pairs with q in [q_begin, q_end), k in [k_begin, k_end) and in `comb`, d_min ≤ q−k ≤ d_max.
struct Shape {
  int64_t q_begin = 0;
  int64_t q_end = 0;
  int64_t k_begin = 0;
  int64_t k_end = kFar;
  int64_t d_min = -kFar;
  int64_t d_max = kFar;
  Comb comb;

  // Cuts the keys to those that some row sees, which the band makes one range. False if none are
  // left. After it, every key of the range that is in the comb is in a pair.
  bool Tighten();
};

using ShapeList = absl::InlinedVector<Shape, 12>;

// What is asked for: queries [q_begin, q_end), within one 64-token block unless it is said, and
// keys [k_begin, k_end).
struct ShapeWindow {
  int64_t q_begin = 0;
  int64_t q_end = 0;
  int64_t k_begin = 0;
  int64_t k_end = 0;
};

// Cuts `shape` to the window and appends it unless nothing is left.
void AppendShape(Shape shape, const ShapeWindow& window, ShapeList* out);

void SortByKeys(ShapeList* shapes);

// Appends the common pairs of two shapes, as disjoint shapes: one, or several where two combs of
// different periods meet.
void AppendIntersection(const Shape& a, const Shape& b, ShapeList* out);

// Pairs of one shape, with any number of rows. Closed form but for the comb's teeth at the band's
// ends.
int64_t PairsOf(const Shape& shape);

// Pairs in the union of the shapes, by inclusion and exclusion; nullopt where the shapes overlap in
// so many ways that it would take more than a few hundred terms.
absl::optional<int64_t> PairsOfUnion(const ShapeList& shapes);

// Adds the shape's pairs with keys [64·k_block, 64·k_block + 64) to mask[q − 64·q_block].
void AddToMask(const Shape& shape, int64_t q_block, int64_t k_block, uint64_t mask[64]);

}  // namespace annulus
