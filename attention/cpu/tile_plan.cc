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

bool MayMeet(const BlockRun& a, const BlockRun& b) {
  return a.first <= b.last() && b.first <= a.last();
}

}  // namespace

void TilePlan::Make(absl::Span<const AttendArgs> batch) {
  tiles_.clear();
  tile_blocks_.clear();
  grids_.clear();
  segments_.clear();
  split_tiles_.clear();
  state_floats_ = 0;
  for (const AttendArgs& args : batch) AddProblem(args);
  Cut();
}

void TilePlan::AddProblem(const AttendArgs& args) {
  const int kv_head_first = args.heads.first / args.group;
  const int kv_head_end = (args.heads.end() - 1) / args.group + 1;
  for (int kv_head = kv_head_first; kv_head < kv_head_end; ++kv_head) {
    int64_t row = 0;
    for (const TokenRange& range : args.q_ranges) {
      for (int64_t begin = range.begin; begin < range.end;) {
        const int64_t end = std::min(range.end, (begin / kBlockTokens + 1) * kBlockTokens);
        const HeadRange heads = Intersect({kv_head * args.group, args.group}, args.heads);
        if (!args.pattern->by_query_head()) {
          AddTiles(args, *args.pattern, heads, {begin, end}, row);
        } else {
          for (int head = heads.first; head < heads.end(); ++head) {
            AddTiles(args, args.pattern->Member(head % args.group), {head, 1}, {begin, end}, row);
          }
        }
        row += end - begin;
        begin = end;
      }
    }
  }
}

void TilePlan::AddTiles(const AttendArgs& args, const Pattern& pattern, HeadRange heads,
                        TokenRange q, int64_t row_first) {
  if (IsCancelled(args)) return;
  const size_t grid_first = grids_.size();
  const int kv_head = heads.first / args.group;
  if (AloneIsCheaper(args, pattern, kv_head, q)) {
    for (int64_t at = q.begin; at < q.end; ++at) {
      AddTiles(args, pattern, heads, {at, at + 1}, row_first + (at - q.begin));
    }
    return;
  }
  AddGrids(args, pattern, kv_head, q);
  int64_t blocks = 0;
  for (size_t i = grid_first; i < grids_.size(); ++i) blocks += grids_[i].size();
  if (blocks == 0) return;
  const int step = HeadsPerTile(*args.kv, q.size(), heads.count);
  for (int head = heads.first; head < heads.end(); head += step) {
    Tile tile;
    tile.args = &args;
    tile.pattern = &pattern;
    tile.shape.tokens = static_cast<int>(q.size());
    tile.shape.heads = std::min(step, heads.end() - head);
    tile.shape.head_dim = args.kv->head_dim();
    tile.shape.v_head_dim = args.kv->v_head_dim();
    tile.shape.kv_dtype = args.kv->dtype();
    tile.shape.scale = args.scale * std::numbers::log2e_v<float>;
    tile.kv_head = kv_head;
    tile.head_first = head - args.heads.first;
    tile.row_first = row_first;
    tile.position = q.begin;
    tile.grid_first = grid_first;
    tile.grid_end = grids_.size();
    tiles_.push_back(tile);
    tile_blocks_.push_back(blocks);
  }
}

bool TilePlan::AloneIsCheaper(const AttendArgs& args, const Pattern& pattern, int kv_head,
                              TokenRange q) {
  // Of pairs, by what one costs in the kernels of few rows, and with its key copied together.
  constexpr int64_t kCostAlone = 16;
  const auto has_rows = [](const NamedList& list) {
    return list.list->data().rows == KeyListData::Rows::kToken;
  };
  if (q.size() == 1 || std::none_of(pattern.lists().begin(), pattern.lists().end(), has_rows)) {
    return false;
  }
  pattern.Row(kv_head, q, args.kv_tokens, &row_);
  int64_t blocks = 0;
  for (const TileRun& seen : row_) blocks += seen.blocks.count;
  const int64_t together = q.size() * blocks * kBlockTokens;
  return together > kCostAlone * pattern.CountPairs(kv_head, q, args.kv_tokens).visited;
}

void TilePlan::AddGrids(const AttendArgs& args, const Pattern& pattern, int kv_head, TokenRange q) {
  const size_t own = grids_.size();
  pattern.Row(kv_head, q, args.kv_tokens, &row_);
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
  for (int64_t blocks : tile_blocks_) total += blocks;
  const int64_t segment_blocks = std::max(kSegmentBlocksMin, (total + kSegments - 1) / kSegments);
  for (size_t t = 0; t < tiles_.size(); ++t) {
    const int64_t blocks = tile_blocks_[t];
    const int64_t parts = (blocks + segment_blocks - 1) / segment_blocks;
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
    return segments_[i].blocks * tiles_[segments_[i].tile].shape.rows();
  };
  std::sort(order_.begin(), order_.end(), [&work](size_t a, size_t b) {
    return std::make_pair(-work(a), a) < std::make_pair(-work(b), b);
  });
}

}  // namespace annulus::cpu
