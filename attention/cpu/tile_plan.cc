#include "attention/cpu/tile_plan.h"

#include <algorithm>
#include <numbers>
#include <utility>

#include "attention/attend_args.h"

namespace annulus::cpu {
namespace {

// A tile's queries and accumulator should stay in L2 beside the block at hand.
constexpr int kTileFloatsMax = 64 * 1024;
constexpr int kTileRowsMax = 256;
// So many queries have company in most blocks that they see.
constexpr int kGatherRowsMax = 1024;
// A batch is cut into about this many segments, if that leaves each enough blocks to be worth a
// result of its own.
constexpr int64_t kSegments = 1024;
constexpr int64_t kSegmentBlocksMin = 32;

int HeadsPerTile(const KvTable& kv, int64_t tokens, int heads) {
  const int rows = std::clamp(kTileFloatsMax / (kv.head_dim() + kv.v_head_dim()), 64, kTileRowsMax);
  return std::clamp(rows / static_cast<int>(tokens), 1, heads);
}

// Whether `run` is one more block of each of the grid's groups; then it becomes so.
bool Widen(const BlockRun& run, bool full, BlockGrid* grid) {
  const int64_t offset = run.first - grid->first;
  if (run.step != grid->step || run.count != grid->count || full != grid->full) return false;
  if (offset <= 0 || offset >= grid->step) return false;
  if (grid->width == 1) grid->pitch = offset;
  if (offset != grid->width * grid->pitch) return false;
  ++grid->width;
  return true;
}

// The tokens of a unit of the lists that queries have of their own, of the smallest; 0: none has.
int64_t RowListUnit(const Pattern& pattern) {
  int64_t unit = 0;
  for (const NamedList& list : pattern.lists()) {
    if (list.list->data().rows != KeyListData::Rows::kToken) continue;
    unit = unit == 0 ? list.list->unit_tokens() : std::min(unit, list.list->unit_tokens());
  }
  return unit;
}

// fn(TokenRange) for the queries of each block.
template <typename Fn>
void ForEachBlock(TokenRange q, const Fn& fn) {
  for (int64_t begin = q.begin; begin < q.end;) {
    const int64_t end = std::min(q.end, (begin / kBlockTokens + 1) * kBlockTokens);
    fn(TokenRange{begin, end});
    begin = end;
  }
}

bool MayMeet(const BlockRun& a, const BlockRun& b) {
  return a.first <= b.last() && b.first <= a.last();
}

}  // namespace

void TilePlan::Make(absl::Span<const AttendArgs> batch) {
  tiles_.clear();
  tile_blocks_.clear();
  tile_cells_.clear();
  grids_.clear();
  segments_.clear();
  split_tiles_.clear();
  state_floats_ = 0;
  row_of_ = {};
  for (const AttendArgs& args : batch) AddProblem(args);
  Cut();
}

void TilePlan::AddProblem(const AttendArgs& args) {
  const int kv_head_first = args.heads.first / args.group;
  const int kv_head_end = (args.heads.end() - 1) / args.group + 1;
  for (int kv_head = kv_head_first; kv_head < kv_head_end; ++kv_head) {
    const HeadRange heads = Intersect({kv_head * args.group, args.group}, args.heads);
    int64_t row = 0;
    for (const TokenRange& range : args.q_ranges) {
      if (!args.pattern->by_query_head()) {
        AddQueries(args, *args.pattern, heads, range, row);
      } else {
        for (int head = heads.first; head < heads.end(); ++head) {
          AddQueries(args, args.pattern->Member(head % args.group), {head, 1}, range, row);
        }
      }
      row += range.size();
    }
  }
}

void TilePlan::AddQueries(const AttendArgs& args, const Pattern& pattern, HeadRange heads,
                          TokenRange q, int64_t row_first) {
  const int64_t unit = RowListUnit(pattern);
  if (q.size() == 1 || unit == 0) {
    ForEachBlock(q, [&](TokenRange block) {
      AddTiles(args, pattern, heads, block, row_first + (block.begin - q.begin));
    });
    return;
  }
  const int64_t many = std::max<int64_t>(kGatherRowsMax / heads.count / kBlockTokens, 1);
  for (int64_t at = q.begin; at < q.end && !IsCancelled(args);) {
    const TokenRange queries{at, std::min(q.end, (at / kBlockTokens + many) * kBlockTokens)};
    const int64_t row = row_first + (at - q.begin);
    costs_.clear();
    RowCosts sum;
    ForEachBlock(queries, [&](TokenRange block) {
      costs_.push_back(CostsOf(args, pattern, heads.first / args.group, block, unit));
      sum.by_block += costs_.back().by_block;
      sum.gathered += costs_.back().gathered;
    });
    if (sum.gathered < sum.by_block && heads.count * kBlockTokens <= kGatherRowsMax) {
      AddGathered(args, pattern, heads, queries, row, sum.gathered);
    } else {
      size_t i = 0;
      ForEachBlock(queries, [&](TokenRange block) {
        const int64_t step = costs_[i++].one_by_one ? 1 : block.size();
        for (int64_t begin = block.begin; begin < block.end; begin += step) {
          AddTiles(args, pattern, heads, {begin, begin + step}, row + (begin - at));
        }
      });
    }
    at = queries.end;
  }
}

void TilePlan::AddTiles(const AttendArgs& args, const Pattern& pattern, HeadRange heads,
                        TokenRange q, int64_t row_first) {
  if (IsCancelled(args)) return;
  const int kv_head = heads.first / args.group;
  const RowOf row_of{&args, &pattern, pattern.HeadClass(kv_head), q};
  if (row_of != row_of_) {
    row_grids_.first = grids_.size();
    pattern.Row(kv_head, q, args.kv_tokens, &row_);
    AddGrids(args);
    row_grids_.end = grids_.size();
    row_of_ = row_of;
  }
  const int step = HeadsPerTile(*args.kv, q.size(), heads.count);
  for (int head = heads.first; head < heads.end(); head += step) {
    const HeadRange some{head, std::min(step, heads.end() - head)};
    AddTile(args, pattern, some, q, row_first, row_grids_);
  }
}

void TilePlan::AddGathered(const AttendArgs& args, const Pattern& pattern, HeadRange heads,
                           TokenRange q, int64_t row_first, int64_t pairs) {
  Grids grids{grids_.size(), 0};
  std::vector<BlockRun> seen;
  ForEachBlock(q, [&](TokenRange block) {
    pattern.Row(heads.first / args.group, block, args.kv_tokens, &row_);
    for (const TileRun& run : row_) seen.push_back(run.blocks);
  });
  const BlockSet all = BlockSet::FromRuns(std::move(seen));
  row_.clear();
  for (const BlockRun& run : all.runs()) row_.push_back({run, false});
  AddGrids(args);
  grids.end = grids_.size();
  const size_t tiles = tiles_.size();
  AddTile(args, pattern, heads, q, row_first, grids);
  if (tiles_.size() == tiles) return;
  tiles_.back().gathers = true;
  tile_cells_.back() = std::max<int64_t>(pairs / (kBlockTokens * kBlockTokens), 1);
}

// A tile of nothing is none.
void TilePlan::AddTile(const AttendArgs& args, const Pattern& pattern, HeadRange heads,
                       TokenRange q, int64_t row_first, Grids grids) {
  int64_t blocks = 0;
  for (size_t i = grids.first; i < grids.end; ++i) blocks += grids_[i].size();
  if (blocks == 0) return;
  Tile tile;
  tile.args = &args;
  tile.pattern = &pattern;
  tile.shape.tokens = static_cast<int>(q.size());
  tile.shape.heads = heads.count;
  tile.shape.head_dim = args.kv->head_dim();
  tile.shape.v_head_dim = args.kv->v_head_dim();
  tile.shape.kv_dtype = args.kv->dtype();
  tile.shape.scale = args.scale * std::numbers::log2e_v<float>;
  tile.kv_head = heads.first / args.group;
  tile.head_first = heads.first - args.heads.first;
  tile.row_first = row_first;
  tile.position = q.begin;
  tile.grid_first = grids.first;
  tile.grid_end = grids.end;
  tiles_.push_back(tile);
  tile_blocks_.push_back(blocks);
  tile_cells_.push_back(blocks);
}

TilePlan::RowCosts TilePlan::CostsOf(const AttendArgs& args, const Pattern& pattern, int kv_head,
                                     TokenRange q, int64_t unit) {
  // Of a pair in the kernels of few rows, its key copied.
  constexpr int64_t kCostAlone = 16;
  constexpr int64_t kSamples = 8;  // of the blocks
  pattern.Row(kv_head, q, args.kv_tokens, &row_);
  int64_t blocks = 0;
  for (const TileRun& seen : row_) blocks += seen.blocks.count;
  const int64_t stride = std::max<int64_t>(blocks / kSamples, 1);
  int64_t rows = 0, samples = 0, skip = stride / 2;
  for (const TileRun& seen : row_) {
    for (; skip < seen.blocks.count; skip += stride, ++samples) {
      uint64_t masks[kBlockTokens];
      pattern.CellMask(kv_head, q, seen.blocks.first + skip * seen.blocks.step, masks);
      rows += kBlockTokens - std::count(masks, masks + kBlockTokens, 0);
    }
    skip -= seen.blocks.count;
  }
  const int64_t together = q.size() * blocks * kBlockTokens;
  const int64_t alone = kCostAlone * pattern.CountPairs(kv_head, q, args.kv_tokens).visited;
  RowCosts costs;
  costs.one_by_one = alone < together;
  costs.by_block = std::min(alone, together);
  if (samples > 0) {
    const int64_t pairs = kBlockTokens * rows * blocks / samples;
    // Masks, and a query copied there and back for each unit.
    costs.gathered = pairs + pairs / 4 + pairs * kBlockTokens / std::max(unit, kBlockTokens);
  }
  return costs;
}

void TilePlan::AddGrids(const AttendArgs& args) {
  const size_t own = grids_.size();
  for (const TileRun& seen : row_) {
    for (const BlockRun& keys : args.keys->runs()) {
      if (!MayMeet(seen.blocks, keys)) continue;
      const BlockRun common = Intersect(seen.blocks, keys);
      if (common.count == 0) continue;
      if (grids_.size() > own && Widen(common, seen.full, &grids_.back())) continue;
      grids_.push_back({common.first, 1, 1, common.count, common.step, seen.full});
    }
  }
}

void TilePlan::Cut() {
  int64_t total = 0;
  for (int64_t cells : tile_cells_) total += cells;
  const int64_t each = (total + kSegments - 1) / kSegments;
  for (size_t t = 0; t < tiles_.size(); ++t) {
    const int64_t blocks = tile_blocks_[t];
    const int64_t cells = std::max(each, kSegmentBlocksMin * BlocksOf(tiles_[t].shape.tokens));
    const int64_t parts = std::min((tile_cells_[t] + cells - 1) / cells, blocks);
    tiles_[t].segment_first = segments_.size();
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = blocks * part / parts;
      segments_.push_back({t, first, blocks * (part + 1) / parts - first, state_floats_});
      if (parts > 1) state_floats_ += StateFloats(tiles_[t].shape);
    }
    tiles_[t].segment_end = segments_.size();
    if (parts > 1) split_tiles_.push_back(t);
  }
  order_.resize(segments_.size());
  for (size_t i = 0; i < order_.size(); ++i) order_[i] = i;
  const auto work = [this](size_t i) {
    const size_t tile = segments_[i].tile;
    const TileShape& shape = tiles_[tile].shape;
    const int64_t rows = tiles_[tile].gathers ? kBlockTokens * shape.heads : shape.rows();
    return segments_[i].blocks * tile_cells_[tile] / tile_blocks_[tile] * rows;
  };
  std::sort(order_.begin(), order_.end(), [&work](size_t a, size_t b) {
    return std::make_pair(-work(a), a) < std::make_pair(-work(b), b);
  });
}

}  // namespace annulus::cpu
