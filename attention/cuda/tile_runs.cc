#include "attention/cuda/tile_runs.h"

#include <algorithm>

namespace annulus::cuda {
namespace {

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

// Masks repeat from block to block; each is kept once.
void TileRuns::AddPiece(const AttendArgs& args, int kv_head, const BlockRun& blocks, bool whole,
                        Queries* queries) {
  queries->pieces.push_back({blocks, kSeesAll});
  if (whole) return;
  queries->pieces.back().sees = static_cast<int32_t>(mask_ids_.size());
  mask_.resize(kBlockTokens * sizeof(uint64_t));
  for (int64_t i = 0; i < blocks.count; ++i) {
    args.pattern->CellMask(kv_head, queries->q.begin / kBlockTokens, blocks.first + i * blocks.step,
                           reinterpret_cast<uint64_t*>(mask_.data()));
    const auto [known, is_new] = known_masks_.try_emplace(
        mask_, static_cast<int32_t>(masks_.size() / static_cast<size_t>(kBlockTokens)));
    if (is_new) {
      const auto* rows = reinterpret_cast<const uint64_t*>(mask_.data());
      masks_.insert(masks_.end(), rows, rows + kBlockTokens);
    }
    mask_ids_.push_back(known->second);
  }
}

TileRuns::Range TileRuns::Add(const AttendArgs& args, int kv_head,
                              absl::Span<const Queries* const> halves) {
  Known known{args.pattern->HeadClass(kv_head), {-1, -1, -1, -1}, {}};
  for (size_t h = 0; h < halves.size(); ++h) known.q_begin[h] = halves[h]->q.begin;
  // KV heads come one after the other for each block of queries: what has another last one is over.
  if (last_q_begin_ != halves.back()->q.begin) known_.clear();
  last_q_begin_ = halves.back()->q.begin;
  for (const Known& other : known_) {
    if (other.head_class == known.head_class &&
        std::equal(std::begin(other.q_begin), std::end(other.q_begin), known.q_begin)) {
      return other.range;
    }
  }
  Unite(halves);
  AddRuns(args.kv_tokens % kBlockTokens == 0 ? -1 : args.kv_tokens / kBlockTokens, halves.size(),
          &known.range);
  known_.push_back(known);
  return known.range;
}

// The cells as runs, first those that some half sees in part or not at all, and the short block if
// there is one.
void TileRuns::AddRuns(int64_t short_block, size_t halves, Range* range) {
  range->first = static_cast<int32_t>(runs_.size());
  const auto add = [&](const Cells& cells) {
    Run run;
    run.first = static_cast<int32_t>(cells.blocks.first);
    run.step = static_cast<int32_t>(cells.blocks.step);
    run.count = static_cast<int32_t>(cells.blocks.count);
    std::copy(std::begin(cells.sees), std::end(cells.sees), run.sees);
    runs_.push_back(run);
    range->blocks += run.count;
  };
  const auto in_part = [halves](const Cells& cells) {
    return std::any_of(cells.sees, cells.sees + halves,
                       [](int32_t sees) { return sees != kSeesAll; });
  };
  for (Cells& cells : cells_) {
    if (in_part(cells)) {
      add(cells);
    } else if (cells.blocks.Contains(short_block)) {  // no run goes beyond it
      Cells last = cells;
      last.blocks = {short_block, 1, 1};
      add(last);
      if (--cells.blocks.count == 1) cells.blocks.step = 1;
    }
  }
  range->masked = range->blocks;
  for (const Cells& cells : cells_) {
    if (!in_part(cells) && cells.blocks.count != 0) add(cells);
  }
  range->end = static_cast<int32_t>(runs_.size());
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
      const BlockRun common = Intersect(cells.blocks, piece.blocks);
      if (common.count == 0) continue;
      joined_.push_back(Within(cells, common));
      joined_.back().sees[h] = Within(piece.sees, piece.blocks, common);
    }
    subtract(cells.blocks, queries.pieces);
    for (const BlockRun& run : rest_) joined_.push_back(Within(cells, run));
  }
  for (const Piece& piece : queries.pieces) {
    subtract(piece.blocks, cells_);
    for (const BlockRun& run : rest_) {
      joined_.emplace_back();
      joined_.back().blocks = run;
      joined_.back().sees[h] = Within(piece.sees, piece.blocks, run);
    }
  }
  cells_.swap(joined_);
}

// Some of the cells' blocks.
TileRuns::Cells TileRuns::Within(const Cells& cells, const BlockRun& blocks) {
  Cells some;
  some.blocks = blocks;
  for (size_t h = 0; h < kHalves; ++h) {
    some.sees[h] = Within(cells.sees[h], cells.blocks, blocks);
  }
  return some;
}

int32_t TileRuns::Within(int32_t sees, const BlockRun& of, const BlockRun& blocks) {
  if (sees < 0) return sees;
  const auto first = sees + static_cast<int32_t>((blocks.first - of.first) / of.step);
  const auto stride = static_cast<int32_t>(blocks.count == 1 ? 1 : blocks.step / of.step);
  if (stride == 1) return first;
  const auto copy = static_cast<int32_t>(mask_ids_.size());
  for (int32_t i = 0; i < blocks.count; ++i) {
    mask_ids_.push_back(mask_ids_[static_cast<size_t>(first + i * stride)]);
  }
  return copy;
}

}  // namespace annulus::cuda
