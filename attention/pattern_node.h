// The meaning of one KV head's rule: a tree of primitives under unions and intersections, with
// everything that depends on the head already put in. Private to the pattern's implementation.
// Nodes are immutable and shared between heads and threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/optional.h"
#include "attention/block_set.h"
#include "attention/key_list.h"
#include "attention/pattern.h"
#include "attention/pattern_shapes.h"
#include "attention/ranges.h"
#include "attention/row_bands.h"

namespace annulus {

class PatternNode {
 public:
  virtual ~PatternNode() = default;

  // The definition, for one pair. Everything else must agree with it.
  virtual bool Allows(int64_t q, int64_t k) const = 0;

  // Whether a few shapes say it all. Lists, and what they are part of, answer by cells alone: Row,
  // Mask and perhaps CountPairs.
  virtual bool shaped() const { return true; }

  // Appends shapes whose union is the node's pairs within `window`. REQUIRES: shaped().
  virtual void AppendShapes(const ShapeWindow& window, ShapeList* out) const = 0;

  // The blocks with a pair within `window`, as Pattern::Row says. `out` is replaced.
  virtual void Row(const ShapeWindow& window, std::vector<TileRun>* out) const;

  // The pairs within `window`, which lies within the cell (q_block, k_block), as
  // Pattern::CellMask says. All 64 rows are written.
  virtual void Mask(const ShapeWindow& window, int64_t q_block, int64_t k_block,
                    uint64_t mask[64]) const;

  // The rest but for Unneeded is for any number of rows at once. Where a node cannot say it, it
  // answers false or nothing, whatever it appended, and its rows are looked at block by block.

  // Appends shapes whose union is the node's pairs within `window`.
  virtual bool AppendWide(const ShapeWindow& window, ShapeList* out) const;

  // Appends bands whose union is the cells that hold a pair. The window's queries are whole blocks.
  virtual bool AppendBands(const ShapeWindow& window, std::vector<BlockBand>* out) const;

  // The node's pairs within `window`.
  virtual absl::optional<int64_t> CountPairs(const ShapeWindow& window) const;

  // Appends shapes of which only the keys are meant: together they are those that some query sees.
  virtual bool AppendSeen(const ShapeWindow& window, ShapeList* out) const;

  // Blocks among [0, blocks) that no query at position ≥ next_q sees, those only that are known
  // from the definition: never too many, perhaps too few.
  virtual BlockSet Unneeded(int64_t next_q, int64_t blocks) const = 0;

  // Same pairs by the same construction.
  virtual bool Equals(const PatternNode& other) const = 0;

  // An upper bound of the shapes in one query block. Its rows fall into groups. One group meets
  // `ranges` shapes that are one range of keys and `combs` others, in `lists` and `comb_lists` of
  // shapes that have no keys in common: two lists of m and n shapes meet in fewer than m + n
  // places. The combs' longest tooth and their periods' greatest common divisor (0 without one)
  // bound in how many ways two combs meet.
  struct Size {
    int64_t groups = 1;
    int64_t lists = 1;
    int64_t ranges = 0;
    int64_t comb_lists = 0;
    int64_t combs = 0;
    int64_t tooth = 0;
    int64_t period = 0;
    int64_t keys = kFar;  // an upper bound of those that one query sees

    int64_t shapes() const;
  };
  const Size& size() const { return size_; }

  // Equal for nodes that are equal, and mostly for no others.
  uint64_t hash() const { return hash_; }

 protected:
  PatternNode(Size size, uint64_t hash) : size_(size), hash_(hash) {}

 private:
  const Size size_;
  const uint64_t hash_;
};

inline uint64_t AddToHash(uint64_t hash, uint64_t number) {
  hash = (hash ^ number) * 0x9e3779b97f4a7c15;
  return hash ^ hash >> 32;
}

// Of a node of that kind with these numbers, in this order.
template <typename Numbers>
uint64_t HashNumbers(char kind, const Numbers& numbers) {
  uint64_t hash = static_cast<uint64_t>(kind);
  for (const auto number : numbers) hash = AddToHash(hash, static_cast<uint64_t>(number));
  return hash;
}

using NodePtr = std::shared_ptr<const PatternNode>;

// The pairs with d_min ≤ q − k ≤ d_max: full, causal and window.
NodePtr MakeBand(int64_t d_min, int64_t d_max);

// The pairs with query and key in these ranges of positions.
NodePtr MakeBox(TokenRange q, TokenRange k);

// The keys that the list of `head` names; nothing where the list is null.
NodePtr MakeListed(std::shared_ptr<const KeyList> list, int head);

// At least one node each.
NodePtr MakeUnion(std::vector<NodePtr> parts);
NodePtr MakeIntersection(std::vector<NodePtr> parts);

}  // namespace annulus
