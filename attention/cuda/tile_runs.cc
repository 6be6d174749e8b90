#include "attention/cuda/tile_runs.h"

#include <algorithm>

namespace annulus::cuda {
namespace {

// Queries of more pieces keep cells: pieces of two halves are compared in pairs.
constexpr size_t kPiecesMax = 16;

// The first half with the queries of half `h`: it sees the same.
size_t FirstOf(absl::Span<const Queries* const> halves, size_t h) {
  return static_cast<size_t>(std::find(halves.begin(), halves.end(), halves[h]) - halves.begin());
}

}  // namespace

void TileRuns::Clear() {
  runs_.clear();
  ids_.clear();
  masks_.clear();
  known_masks_.clear();
  known_.clear();
}

// Masks repeat from block to block; each is kept once.
int32_t TileRuns::MaskOf(const Pattern& pattern, int kv_head, TokenRange q, int64_t block) {
  mask_.resize(kBlockTokens * sizeof(uint64_t));
  auto* rows = reinterpret_cast<uint64_t*>(mask_.data());
  pattern.CellMask(kv_head, q, block, rows);
  const auto [known, is_new] = known_masks_.try_emplace(
      mask_, static_cast<int32_t>(masks_.size() / static_cast<size_t>(kBlockTokens)));
  if (is_new) masks_.insert(masks_.end(), rows, rows + kBlockTokens);
  return known->second;
}

void TileRuns::AddPiece(const Pattern& pattern, int kv_head, const TileRun& seen,
                        Queries* queries) {
  queries->pieces.push_back({seen.blocks, kSeesAll});
  if (seen.full) return;
  queries->pieces.back().sees = static_cast<int32_t>(ids_.size());
  for (int64_t i = 0; i < seen.blocks.count; ++i) {
    const int64_t block = seen.blocks.first + i * seen.blocks.step;
    ids_.push_back(MaskOf(pattern, kv_head, queries->q, block));
  }
}

void TileRuns::AddSeen(const Pattern& pattern, int kv_head, absl::Span<const TileRun> seen,
                       Queries* queries) {
  if (seen.size() <= kPiecesMax) {
    for (const TileRun& run : seen) AddPiece(pattern, kv_head, run, queries);
    return;
  }
  bool ascends = true;
  for (const TileRun& run : seen) {
    for (int64_t i = 0; i < run.blocks.count; ++i) {
      const int64_t block = run.blocks.first + i * run.blocks.step;
      ascends = ascends && (queries->cells.empty() || block > queries->cells.back().block);
      const int32_t sees = run.full ? kSeesAll : MaskOf(pattern, kv_head, queries->q, block);
      queries->cells.push_back({static_cast<int32_t>(block), sees});
    }
  }
  if (ascends) return;
  std::sort(queries->cells.begin(), queries->cells.end(),
            [](const SeenCell& a, const SeenCell& b) { return a.block < b.block; });
}

bool TileRuns::Alike(const Queries& a, const Queries& b) {
  if (!a.scattered() || !b.scattered()) return true;
  size_t common = 0;
  for (size_t i = 0, j = 0; i < a.cells.size() && j < b.cells.size();) {
    const int32_t left = a.cells[i].block, right = b.cells[j].block;
    common += left == right ? 1 : 0;
    i += left <= right ? 1 : 0;
    j += right <= left ? 1 : 0;
  }
  const size_t more = std::max(a.cells.size(), b.cells.size());
  return a.cells.size() + b.cells.size() - common <= more + more / 4 + 4;
}

TileRuns::Range TileRuns::Add(int64_t kv_tokens, absl::Span<const Queries* const> halves) {
  Known known;
  std::copy(halves.begin(), halves.end(), known.halves);
  // KV heads come one after the other for each block of queries: what has another last one is over.
  if (last_q_begin_ != halves.back()->q.begin) known_.clear();
  last_q_begin_ = halves.back()->q.begin;
  for (const Known& other : known_) {
    if (std::equal(std::begin(other.halves), std::end(other.halves), known.halves)) {
      return other.range;
    }
  }
  const int64_t short_block = kv_tokens % kBlockTokens == 0 ? -1 : kv_tokens / kBlockTokens;
  known.range.first = static_cast<int32_t>(runs_.size());
  if (std::any_of(halves.begin(), halves.end(), [](const Queries* q) { return q->scattered(); })) {
    UniteCells(short_block, halves, &known.range);
  } else {
    Unite(halves);
    AddRuns(short_block, halves.size(), &known.range);
  }
  known.range.end = static_cast<int32_t>(runs_.size());
  known_.push_back(known);
  return known.range;
}

// What the queries see as cells, in `room` if they have none.
const std::vector<SeenCell>& TileRuns::CellsOf(const Queries& queries,
                                               std::vector<SeenCell>* room) const {
  if (queries.scattered()) return queries.cells;
  room->clear();
  for (const Piece& piece : queries.pieces) {
    for (int64_t i = 0; i < piece.blocks.count; ++i) {
      const auto block = static_cast<int32_t>(piece.blocks.first + i * piece.blocks.step);
      room->push_back(
          {block, piece.sees < 0 ? piece.sees : ids_[static_cast<size_t>(piece.sees + i)]});
    }
  }
  std::sort(room->begin(), room->end(),
            [](const SeenCell& a, const SeenCell& b) { return a.block < b.block; });
  return *room;
}

// As Unite and AddRuns, of cells.
void TileRuns::UniteCells(int64_t short_block, absl::Span<const Queries* const> halves,
                          Range* range) {
  absl::Span<const SeenCell> left[kHalves];
  for (size_t h = 0; h < halves.size(); ++h) left[h] = CellsOf(*halves[h], &room_[h]);
  listed_.clear();
  listed_masked_.clear();
  for (;;) {
    Cell cell;
    cell.block = INT32_MAX;
    for (size_t h = 0; h < halves.size(); ++h) {
      if (!left[h].empty()) cell.block = std::min(cell.block, left[h].front().block);
    }
    if (cell.block == INT32_MAX) break;
    bool whole = cell.block != short_block;
    for (size_t h = 0; h < halves.size(); ++h) {
      if (!left[h].empty() && left[h].front().block == cell.block) {
        cell.sees[h] = left[h].front().sees;
        left[h].remove_prefix(1);
      }
      whole = whole && cell.sees[h] == kSeesAll;
    }
    (whole ? listed_ : listed_masked_).push_back(cell);
  }
  AddListed(listed_masked_, halves.size(), range);
  range->masked = range->blocks;
  AddListed(listed_, halves.size(), range);
}

// One run of cells that ascend.
void TileRuns::AddListed(const std::vector<Cell>& cells, size_t halves, Range* range) {
  if (cells.empty()) return;
  Run run;
  run.first = static_cast<int32_t>(ids_.size());
  run.step = 0;
  run.count = static_cast<int32_t>(cells.size());
  for (const Cell& cell : cells) ids_.push_back(cell.block);
  for (size_t h = 0; h < halves; ++h) {
    run.sees[h] = cells[0].sees[h];
    if (run.sees[h] < 0 && std::all_of(cells.begin(), cells.end(), [&](const Cell& cell) {
          return cell.sees[h] == run.sees[h];
        })) {
      continue;
    }
    run.sees[h] = static_cast<int32_t>(ids_.size());
    for (const Cell& cell : cells) ids_.push_back(cell.sees[h]);
  }
  runs_.push_back(run);
  range->blocks += run.count;
}

void TileRuns::AddRun(const Cells& cells, Range* range) {
  Run run;
  run.first = static_cast<int32_t>(cells.blocks.first);
  run.step = static_cast<int32_t>(cells.blocks.step);
  run.count = static_cast<int32_t>(cells.blocks.count);
  std::copy(std::begin(cells.sees), std::end(cells.sees), run.sees);
  runs_.push_back(run);
  range->blocks += run.count;
}

// The cells of some_: those that interleave as one run that lists its blocks.
void TileRuns::AddAscending(size_t halves, Range* range) {
  std::sort(some_.begin(), some_.end(),
            [](const Cells& a, const Cells& b) { return a.blocks.first < b.blocks.first; });
  for (size_t begin = 0, end = 0; begin < some_.size(); begin = end) {
    int64_t last = some_[begin].blocks.last();
    for (end = begin + 1; end < some_.size() && some_[end].blocks.first < last; ++end) {
      last = std::max(last, some_[end].blocks.last());
    }
    if (end == begin + 1) {
      AddRun(some_[begin], range);
      continue;
    }
    listed_.clear();
    for (size_t i = begin; i < end; ++i) {
      const BlockRun& blocks = some_[i].blocks;
      for (int64_t at = 0; at < blocks.count; ++at) {
        Cell& cell = listed_.emplace_back();
        cell.block = static_cast<int32_t>(blocks.first + at * blocks.step);
        for (size_t h = 0; h < halves; ++h) {
          const int32_t sees = some_[i].sees[h];
          cell.sees[h] = sees < 0 ? sees : ids_[static_cast<size_t>(sees + at)];
        }
      }
    }
    std::sort(listed_.begin(), listed_.end(),
              [](const Cell& a, const Cell& b) { return a.block < b.block; });
    AddListed(listed_, halves, range);
  }
}

// The cells as runs, first those that some half sees in part or not at all, and the short block if
// there is one.
void TileRuns::AddRuns(int64_t short_block, size_t halves, Range* range) {
  const auto in_part = [halves](const Cells& cells) {
    return std::any_of(cells.sees, cells.sees + halves,
                       [](int32_t sees) { return sees != kSeesAll; });
  };
  some_.clear();
  for (Cells& cells : cells_) {
    if (in_part(cells)) {
      some_.push_back(cells);
    } else if (cells.blocks.Contains(short_block)) {  // no run goes beyond it
      some_.push_back(cells);
      some_.back().blocks = {short_block, 1, 1};
      if (--cells.blocks.count == 1) cells.blocks.step = 1;
    }
  }
  AddAscending(halves, range);
  range->masked = range->blocks;
  some_.clear();
  for (const Cells& cells : cells_) {
    if (!in_part(cells) && cells.blocks.count != 0) some_.push_back(cells);
  }
  AddAscending(halves, range);
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
  const auto copy = static_cast<int32_t>(ids_.size());
  for (int32_t i = 0; i < blocks.count; ++i) {
    ids_.push_back(ids_[static_cast<size_t>(first + i * stride)]);
  }
  return copy;
}

}  // namespace annulus::cuda
