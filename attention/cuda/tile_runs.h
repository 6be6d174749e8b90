// The blocks that a tile sees, as the kernels walk them: runs, and masks of blocks seen in part.
// Pure; reused.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "attention/backend.h"
#include "attention/cuda/work.h"

namespace annulus::cuda {

// Blocks that queries see: all of them whole (kSeesAll), or in part, and then as Run::sees says.
struct Piece {
  BlockRun blocks;
  int32_t sees = kSeesAll;
};
// One block that queries see: whole (kSeesAll), or in part, and then a mask's id.
struct SeenCell {
  int32_t block = 0;
  int32_t sees = kSeesAll;
};
// Queries of one block, and what they see under one KV head: pieces or, where those would be many,
// as lists have them, cells in ascending order.
struct Queries {
  TokenRange q;
  std::vector<Piece> pieces;
  std::vector<SeenCell> cells;

  bool scattered() const { return !cells.empty(); }
  bool empty() const { return pieces.empty() && cells.empty(); }
};

class TileRuns {
 public:
  // [first, end) of runs(): all halves see all of the blocks after the first `masked`.
  struct Range {
    int32_t first = 0;
    int32_t end = 0;
    int32_t blocks = 0;
    int32_t masked = 0;
  };

  void Clear();

  // What the queries see under `kv_head` of the pattern: `seen`, disjoint runs.
  void AddSeen(const Pattern& pattern, int kv_head, absl::Span<const TileRun> seen,
               Queries* queries);

  // The blocks that any of the halves' queries sees, each once: those that not all of them see
  // whole, and a context's last one, if it is short, come first; both kinds ascend, so that the
  // same blocks are computed in the same order whatever pattern shows them. Up to kHalves.
  Range Add(int64_t kv_tokens, absl::Span<const Queries* const> halves);
  // Between problems: what Add remembers is of one.
  void ForgetRanges() { known_.clear(); }

  // Whether a tile of both has few more blocks than one of them; of scattered ones alone.
  static bool Alike(const Queries& a, const Queries& b);

  const std::vector<Run>& runs() const { return runs_; }
  const std::vector<int32_t>& ids() const { return ids_; }
  const std::vector<uint64_t>& masks() const { return masks_; }
  // The i-th block of a run.
  int64_t BlockOf(const Run& run, int64_t i) const {
    return run.step == 0 ? ids_[static_cast<size_t>(run.first + i)] : run.first + i * run.step;
  }

 private:
  // Blocks that all halves see alike: as Run::sees.
  struct Cells {
    BlockRun blocks;
    int32_t sees[kHalves] = {kSeesNone, kSeesNone, kSeesNone, kSeesNone};
  };
  // One block, for each half: kSeesAll, kSeesNone or a mask's id.
  struct Cell {
    int32_t block = 0;
    int32_t sees[kHalves] = {kSeesNone, kSeesNone, kSeesNone, kSeesNone};
  };
  struct Known {
    const Queries* halves[kHalves] = {};
    Range range;
  };

  int32_t MaskOf(const Pattern& pattern, int kv_head, TokenRange q, int64_t block);
  void AddPiece(const Pattern& pattern, int kv_head, const TileRun& seen, Queries* queries);
  const std::vector<SeenCell>& CellsOf(const Queries& queries, std::vector<SeenCell>* room) const;
  void UniteCells(int64_t short_block, absl::Span<const Queries* const> halves, Range* range);
  void Unite(absl::Span<const Queries* const> halves);
  void Join(const Queries& queries, size_t h);
  void AddRuns(int64_t short_block, size_t halves, Range* range);
  void AddAscending(size_t halves, Range* range);
  void AddRun(const Cells& cells, Range* range);
  void AddListed(const std::vector<Cell>& cells, size_t halves, Range* range);
  Cells Within(const Cells& cells, const BlockRun& blocks);
  int32_t Within(int32_t sees, const BlockRun& of, const BlockRun& blocks);

  std::vector<Run> runs_;
  std::vector<int32_t> ids_;
  std::vector<uint64_t> masks_;
  absl::flat_hash_map<std::string, int32_t> known_masks_;
  std::vector<Known> known_;
  int64_t last_q_begin_ = -1;  // of them
  std::vector<Cells> cells_;   // reused, as are those below
  std::vector<Cells> joined_;
  std::vector<Cells> some_;
  std::vector<Cell> listed_;
  std::vector<Cell> listed_masked_;
  std::vector<SeenCell> room_[kHalves];
  std::vector<BlockRun> rest_;
  std::vector<BlockRun> next_;
  std::string mask_;
};

}  // namespace annulus::cuda
