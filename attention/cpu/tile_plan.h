// How one batch of the CPU backend is cut: into tiles (query rows of one 64-token block that share
// a KV head, with the KV blocks they see) and segments (a part of one tile's blocks: the
// unit that a thread takes), of about the same size over all problems of the batch, which is what
// stream-K ranges are for (Lean Attention, arXiv 2405.10480). The cut depends on the work alone,
// never on the number of threads, so that the bits of an answer do not either. Made by one thread,
// then read by many; a plan that is made anew reuses its memory.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "attention/backend.h"
#include "attention/cpu/kernels.h"

namespace annulus::cpu {

// Blocks in ascending order: `count` groups, `step` apart, of `width` blocks `pitch` apart. The
// blocks that one worker holds of a block-cyclic context are runs that interleave; taken one run
// after the other they would be read from memory with gaps, which no prefetcher follows.
struct BlockGrid {
  int64_t first = 0;
  int64_t width = 1;
  int64_t pitch = 1;
  int64_t count = 0;
  int64_t step = 1;
  bool full = false;

  int64_t size() const { return width * count; }
  int64_t block(int64_t index) const {
    return first + index / width * step + index % width * pitch;
  }
};

struct Tile {
  const AttendArgs* args = nullptr;  // the problem
  const Pattern* pattern = nullptr;  // the problem's, or that of its query heads
  TileShape shape;
  int kv_head = 0;
  int head_first = 0;     // heads [head_first, + shape.heads) of the tensor q
  int64_t row_first = 0;  // rows [row_first, + shape.tokens) of the tensor q
  int64_t position = 0;   // absolute, of the first row
  // Whether shape.tokens are as many as there are, of any blocks, and those that see a block are
  // gathered (row_gather.h).
  bool gathers = false;
  size_t grid_first = 0;  // grids [grid_first, grid_end) of the plan
  size_t grid_end = 0;
  size_t segment_first = 0;  // segments [segment_first, segment_end) of the plan, in order
  size_t segment_end = 0;
};

struct Segment {
  size_t tile = 0;
  int64_t block_first = 0;  // in the sequence of the tile's blocks, grids laid end to end
  int64_t blocks = 0;
  size_t state = 0;  // offset in floats of its result, when its tile has several segments
};

class TilePlan {
 public:
  // The problems must outlive the use of the plan.
  void Make(absl::Span<const AttendArgs> batch);

  const std::vector<Tile>& tiles() const { return tiles_; }
  const std::vector<Segment>& segments() const { return segments_; }
  const std::vector<BlockGrid>& grids() const { return grids_; }
  // Segments in the order in which to start them: most work first, so that threads end together.
  const std::vector<size_t>& order() const { return order_; }
  // Tiles with several segments, whose results must be merged.
  const std::vector<size_t>& split_tiles() const { return split_tiles_; }
  size_t state_floats() const { return state_floats_; }

 private:
  struct Grids {  // [first, end) of grids_
    size_t first = 0;
    size_t end = 0;
  };
  // Whose blocks some grids are: KV heads of one class see the same.
  struct RowOf {
    const AttendArgs* args = nullptr;
    const Pattern* pattern = nullptr;
    int head_class = 0;
    TokenRange q;
    friend bool operator==(const RowOf&, const RowOf&) = default;
  };

  void AddProblem(const AttendArgs& args);
  // Of `heads`, which all see what `pattern` shows the KV head.
  void AddQueries(const AttendArgs& args, const Pattern& pattern, HeadRange heads, TokenRange q,
                  int64_t row_first);
  // Of queries of one block.
  void AddTiles(const AttendArgs& args, const Pattern& pattern, HeadRange heads, TokenRange q,
                int64_t row_first);
  // The blocks of row_.
  void AddGrids(const AttendArgs& args);
  void AddGathered(const AttendArgs& args, const Pattern& pattern, HeadRange heads, TokenRange q,
                   int64_t row_first, int64_t pairs);
  void AddTile(const AttendArgs& args, const Pattern& pattern, HeadRange heads, TokenRange q,
               int64_t row_first, Grids grids);
  // What the queries of one block cost, which have lists of their own, of units of `unit` tokens.
  struct RowCosts {
    bool one_by_one = false;  // rather than together, on the union of what they see
    int64_t by_block = 0;     // in the cheaper of these ways
    int64_t gathered = 0;
  };
  RowCosts CostsOf(const AttendArgs& args, const Pattern& pattern, int kv_head, TokenRange q,
                   int64_t unit);
  void Cut();

  std::vector<Tile> tiles_;
  std::vector<int64_t> tile_blocks_;
  std::vector<int64_t> tile_cells_;  // of 64 queries and a block each, about what it computes
  std::vector<BlockGrid> grids_;
  std::vector<TileRun> row_;  // reused
  RowOf row_of_;              // the last one that was added
  Grids row_grids_;
  std::vector<RowCosts> costs_;  // reused
  std::vector<Segment> segments_;
  std::vector<size_t> order_;
  std::vector<size_t> split_tiles_;
  size_t state_floats_ = 0;
};

// One segment's result, of StateFloats.
struct SegmentState {
  float* max = nullptr;  // [rows], log2 units
  float* sum = nullptr;  // [rows]
  float* out = nullptr;  // [rows, v_head_dim], not normalised
};

inline SegmentState StateAt(float* at, const TileShape& shape) {
  return {at, at + shape.rows(), at + 2 * static_cast<ptrdiff_t>(shape.rows())};
}

inline size_t StateFloats(const TileShape& shape) {
  return static_cast<size_t>(shape.rows()) * (2 + static_cast<size_t>(shape.v_head_dim));
}

}  // namespace annulus::cpu
