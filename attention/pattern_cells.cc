#include "attention/pattern_cells.h"

#include <algorithm>
#include <bit>

#include "attention/pattern_rows.h"

namespace annulus {
namespace {

// What is known of a cell.
enum : uint8_t { kNone, kPartial, kFull, kContested };

// The cells of one query block within a window's keys.
class Cells {
 public:
  explicit Cells(const ShapeWindow& window, uint8_t all)
      : first_(window.k_begin / kBlockTokens),
        cells_(static_cast<size_t>(BlocksOf(window.k_end) - first_), all) {}

  template <typename Fn>
  void ForEach(const std::vector<TileRun>& tiles, Fn fn) {
    for (const TileRun& tile : tiles) {
      for (int64_t i = 0; i < tile.blocks.count; ++i) {
        fn(&cells_[static_cast<size_t>(tile.blocks.first + i * tile.blocks.step - first_)],
           tile.full);
      }
    }
  }

  // Appends the runs of cells; of the contested ones those that is_seen(block).
  template <typename Fn>
  void AppendRuns(Fn is_seen, std::vector<TileRun>* out) const {
    RunMaker runs(out);
    for (size_t i = 0; i < cells_.size(); ++i) {
      const int64_t block = first_ + static_cast<int64_t>(i);
      if (cells_[i] == kNone || (cells_[i] == kContested && !is_seen(block))) continue;
      runs.Add(block, cells_[i] == kFull);
    }
    runs.Finish();
  }

  std::vector<uint8_t>& cells() { return cells_; }

 private:
  const int64_t first_;
  std::vector<uint8_t> cells_;
};

ShapeWindow Within(const ShapeWindow& window, int64_t k_block) {
  const int64_t k = k_block * kBlockTokens;
  return {window.q_begin, window.q_end, std::max(window.k_begin, k),
          std::min(window.k_end, k + kBlockTokens)};
}

int64_t PairsOfCell(const PatternNode& node, const ShapeWindow& window, int64_t k_block) {
  uint64_t mask[kBlockTokens];
  node.Mask(Within(window, k_block), window.q_begin / kBlockTokens, k_block, mask);
  int64_t pairs = 0;
  for (const uint64_t row : mask) pairs += std::popcount(row);
  return pairs;
}

}  // namespace

void RowOfUnion(const std::vector<NodePtr>& parts, const ShapeWindow& window,
                std::vector<TileRun>* out) {
  out->clear();
  if (window.k_begin >= window.k_end) return;
  Cells cells(window, kNone);
  std::vector<TileRun> tiles;
  for (const NodePtr& part : parts) {
    part->Row(window, &tiles);
    cells.ForEach(tiles, [](uint8_t* cell, bool full) {
      *cell = std::max<uint8_t>(*cell, full ? kFull : kPartial);
    });
  }
  cells.AppendRuns([](int64_t) { return true; }, out);
}

// A cell of which two parts show some pairs each may have none that both show.
void RowOfIntersection(const std::vector<NodePtr>& parts, const ShapeWindow& window,
                       std::vector<TileRun>* out) {
  out->clear();
  if (window.k_begin >= window.k_end) return;
  constexpr uint8_t kSeen = 4;  // by the part at hand
  Cells cells(window, kFull);
  std::vector<TileRun> tiles;
  for (const NodePtr& part : parts) {
    part->Row(window, &tiles);
    cells.ForEach(tiles, [](uint8_t* cell, bool full) {
      if (!full && *cell != kNone) *cell = *cell == kFull ? kPartial : kContested;
      *cell |= kSeen;
    });
    for (uint8_t& cell : cells.cells()) cell = (cell & kSeen) != 0 ? cell & ~kSeen : kNone;
  }
  cells.AppendRuns(
      [&](int64_t block) {
        const ShapeWindow cell = Within(window, block);
        uint64_t both[kBlockTokens], mask[kBlockTokens];
        std::fill(both, both + kBlockTokens, ~uint64_t{0});
        for (const NodePtr& part : parts) {
          part->Mask(cell, window.q_begin / kBlockTokens, block, mask);
          for (int64_t r = 0; r < kBlockTokens; ++r) both[r] &= mask[r];
        }
        return std::any_of(both, both + kBlockTokens, [](uint64_t row) { return row != 0; });
      },
      out);
}

int64_t PairsOfCells(const PatternNode& node, const std::vector<TileRun>& tiles,
                     const ShapeWindow& window) {
  int64_t pairs = 0;
  for (const TileRun& tile : tiles) {
    for (int64_t i = 0; i < tile.blocks.count; ++i) {
      const int64_t block = tile.blocks.first + i * tile.blocks.step;
      const ShapeWindow cell = Within(window, block);
      pairs += tile.full ? (cell.q_end - cell.q_begin) * (cell.k_end - cell.k_begin)
                         : PairsOfCell(node, window, block);
    }
  }
  return pairs;
}

}  // namespace annulus
