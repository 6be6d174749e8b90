#include "attention/cuda/tile_runs.h"

#include <algorithm>

namespace annulus::cuda {
namespace {

// Ranges that are remembered: of the KV heads of the query blocks at hand.
constexpr size_t kKnownMax = 64;

// The first half with the queries of half `h`: it sees the same.
size_t FirstOf(absl::Span<const Queries* const> halves, size_t h) {
  return static_cast<size_t>(std::find(halves.begin(), halves.end(), halves[h]) - halves.begin());
}

}  // namespace

void TileRuns::Clear() {
  runs_.clear();
  mask_ids_.clear();
  masks_.clear();
  known_masks_.clear();
  known_.clear();
}

TileRuns::Range TileRuns::Add(const AttendArgs& args, int kv_head,
                              absl::Span<const Queries* const> halves) {
  Known known{args.pattern->HeadClass(kv_head), {-1, -1, -1, -1}, {}};
  for (size_t h = 0; h < halves.size(); ++h) known.q_begin[h] = halves[h]->q.begin;
  for (const Known& other : known_) {
    if (other.head_class == known.head_class &&
        std::equal(std::begin(other.q_begin), std::end(other.q_begin), known.q_begin)) {
      return other.range;
    }
  }
  Unite(halves);
  CutShortBlock(args);
  Range& range = known.range;
  range.first = static_cast<int32_t>(runs_.size());
  const auto in_part = [](const Cells& cells) {
    return std::find(std::begin(cells.sees), std::end(cells.sees), Sees::kPart) !=
           std::end(cells.sees);
  };
  std::stable_partition(cells_.begin(), cells_.end(), in_part);
  for (const Cells& cells : cells_) {
    Run run;
    run.first = static_cast<int32_t>(cells.blocks.first);
    run.step = static_cast<int32_t>(cells.blocks.step);
    run.count = static_cast<int32_t>(cells.blocks.count);
    for (size_t h = 0; h < halves.size(); ++h) {
      const size_t same = FirstOf(halves, h);
      if (same < h) {
        run.sees[h] = run.sees[same];
      } else if (cells.sees[h] == Sees::kAll) {
        run.sees[h] = kSeesAll;
      } else if (cells.sees[h] == Sees::kPart) {
        run.sees[h] = MaskIds(args, kv_head, *halves[h], cells.blocks);
      }
    }
    runs_.push_back(run);
    range.blocks += run.count;
    if (in_part(cells)) range.masked += run.count;
  }
  range.end = static_cast<int32_t>(runs_.size());
  if (known_.size() >= kKnownMax) known_.clear();
  known_.push_back(known);
  return range;
}

// Disjoint cells of all blocks that any of the halves sees.
void TileRuns::Unite(absl::Span<const Queries* const> halves) {
  cells_.clear();
  for (size_t h = 0; h < halves.size(); ++h) {
    const size_t same = FirstOf(halves, h);
    if (same < h) {
      for (Cells& cells : cells_) cells.sees[h] = cells.sees[same];
    } else {
      Join(*halves[h], h);
    }
  }
}

// Adds what half `h` sees to the cells of those before it.
void TileRuns::Join(const Queries& queries, size_t h) {
  const auto subtract = [this](const BlockRun& from, const auto& others) {
    rest_.assign(1, from);
    for (const auto& other : others) {
      next_.clear();
      for (const BlockRun& run : rest_) AppendDifference(run, other.blocks, &next_);
      rest_.swap(next_);
    }
  };
  joined_.clear();
  for (const Cells& cells : cells_) {
    for (const Piece& piece : queries.pieces) {
      Cells common = cells;
      common.blocks = Intersect(cells.blocks, piece.blocks);
      if (common.blocks.count == 0) continue;
      common.sees[h] = piece.full ? Sees::kAll : Sees::kPart;
      joined_.push_back(common);
    }
    subtract(cells.blocks, queries.pieces);
    for (const BlockRun& run : rest_) {
      joined_.push_back(cells);
      joined_.back().blocks = run;
    }
  }
  for (const Piece& piece : queries.pieces) {
    subtract(piece.blocks, cells_);
    for (const BlockRun& run : rest_) {
      joined_.emplace_back();
      joined_.back().blocks = run;
      joined_.back().sees[h] = piece.full ? Sees::kAll : Sees::kPart;
    }
  }
  cells_.swap(joined_);
}

// A block with fewer than 64 keys is seen in part by whoever sees it.
void TileRuns::CutShortBlock(const AttendArgs& args) {
  if (args.kv_tokens % kBlockTokens == 0) return;
  const BlockRun last{args.kv_tokens / kBlockTokens, 1, 1};
  const size_t count = cells_.size();
  for (size_t i = 0; i < count; ++i) {
    if (!cells_[i].blocks.Contains(last.first)) continue;
    Cells cells = cells_[i];
    rest_.clear();
    AppendDifference(cells.blocks, last, &rest_);
    cells.blocks = last;
    for (Sees& sees : cells.sees) {
      if (sees == Sees::kAll) sees = Sees::kPart;
    }
    const Cells whole = cells_[i];
    cells_[i] = cells;
    for (const BlockRun& run : rest_) {
      cells_.push_back(whole);
      cells_.back().blocks = run;
    }
    return;
  }
}

// Where in mask_ids_ those of these blocks begin, one per block. Masks repeat from block to block;
// each is kept once.
int32_t TileRuns::MaskIds(const AttendArgs& args, int kv_head, const Queries& queries,
                          const BlockRun& blocks) {
  const auto first = static_cast<int32_t>(mask_ids_.size());
  std::string mask(kBlockTokens * sizeof(uint64_t), '\0');
  for (int64_t i = 0; i < blocks.count; ++i) {
    args.pattern->CellMask(kv_head, queries.q.begin / kBlockTokens, blocks.first + i * blocks.step,
                           reinterpret_cast<uint64_t*>(mask.data()));
    const auto [known, is_new] = known_masks_.try_emplace(
        mask, static_cast<int32_t>(masks_.size() / static_cast<size_t>(kBlockTokens)));
    if (is_new) {
      const auto* rows = reinterpret_cast<const uint64_t*>(mask.data());
      masks_.insert(masks_.end(), rows, rows + kBlockTokens);
    }
    mask_ids_.push_back(known->second);
  }
  return first;
}

}  // namespace annulus::cuda
