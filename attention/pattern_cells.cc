#include "attention/pattern_cells.h"

#include <algorithm>
#include <bit>

#include "attention/pattern_rows.h"

namespace annulus {
namespace {

// Sets of the cells of one query block within a window's keys, a bit for each.
class CellSets {
 public:
  using Set = std::vector<uint64_t>;

  explicit CellSets(const ShapeWindow& window)
      : first_(window.k_begin / kBlockTokens),
        words_(static_cast<size_t>(BlocksOf(window.k_end) - first_ + 63) / 64) {}

  Set Empty() const { return Set(words_); }
  Set All() const { return Set(words_, ~uint64_t{0}); }

  // Adds the cells of `tiles` to `seen`, and the full ones to `full`.
  void Add(const std::vector<TileRun>& tiles, Set* seen, Set* full) const {
    for (const TileRun& tile : tiles) {
      AddRun(tile.blocks, seen);
      if (tile.full) AddRun(tile.blocks, full);
    }
  }

  // Appends the runs of the cells in `seen`; of the contested ones those that is_seen(block).
  template <typename Fn>
  void AppendRuns(const Set& seen, const Set& full, const Set& contested, Fn is_seen,
                  std::vector<TileRun>* out) const {
    RunMaker runs(out);
    for (size_t w = 0; w < words_; ++w) {
      for (uint64_t left = seen[w]; left != 0; left &= left - 1) {
        const int bit = std::countr_zero(left);
        const int64_t block = first_ + static_cast<int64_t>(w) * 64 + bit;
        const uint64_t one = uint64_t{1} << bit;
        if ((contested[w] & one) != 0 && !is_seen(block)) continue;
        runs.Add(block, (full[w] & one) != 0);
      }
    }
    runs.Finish();
  }

 private:
  void AddRun(const BlockRun& run, Set* set) const {
    const auto begin = static_cast<size_t>(run.first - first_);
    if (run.step != 1) {
      for (int64_t i = 0; i < run.count; ++i) {
        const size_t at = begin + static_cast<size_t>(i * run.step);
        (*set)[at / 64] |= uint64_t{1} << at % 64;
      }
      return;
    }
    const size_t last = begin + static_cast<size_t>(run.count) - 1;
    const uint64_t from = ~uint64_t{0} << begin % 64;
    const uint64_t to = ~uint64_t{0} >> (63 - last % 64);
    if (begin / 64 == last / 64) {
      (*set)[begin / 64] |= from & to;
      return;
    }
    (*set)[begin / 64] |= from;
    for (size_t w = begin / 64 + 1; w < last / 64; ++w) (*set)[w] = ~uint64_t{0};
    (*set)[last / 64] |= to;
  }

  const int64_t first_;
  const size_t words_;
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
  const CellSets cells(window);
  CellSets::Set seen = cells.Empty();
  CellSets::Set full = cells.Empty();
  std::vector<TileRun> tiles;
  for (const NodePtr& part : parts) {
    part->Row(window, &tiles);
    cells.Add(tiles, &seen, &full);
  }
  cells.AppendRuns(
      seen, full, cells.Empty(), [](int64_t) { return true; }, out);
}

// A cell of which two parts show some pairs each may have none that both show.
void RowOfIntersection(const std::vector<NodePtr>& parts, const ShapeWindow& window,
                       std::vector<TileRun>* out) {
  out->clear();
  if (window.k_begin >= window.k_end) return;
  const CellSets cells(window);
  CellSets::Set seen = cells.All();
  CellSets::Set full = cells.All();
  CellSets::Set partial = cells.Empty();    // one part shows some pairs
  CellSets::Set contested = cells.Empty();  // two do
  std::vector<TileRun> tiles;
  for (const NodePtr& part : parts) {
    part->Row(window, &tiles);
    CellSets::Set seen_here = cells.Empty();
    CellSets::Set full_here = cells.Empty();
    cells.Add(tiles, &seen_here, &full_here);
    for (size_t w = 0; w < seen.size(); ++w) {
      const uint64_t partial_here = seen_here[w] & ~full_here[w];
      contested[w] |= partial[w] & partial_here;
      partial[w] |= partial_here;
      seen[w] &= seen_here[w];
      full[w] &= full_here[w];
    }
  }
  cells.AppendRuns(
      seen, full, contested,
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
