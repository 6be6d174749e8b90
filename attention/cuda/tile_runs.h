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
// Queries of one block, and what they see under one KV head.
struct Queries {
  TokenRange q;
  std::vector<Piece> pieces;
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

  // Blocks that the queries see under `kv_head`, whole or in part.
  void AddPiece(const AttendArgs& args, int kv_head, const BlockRun& blocks, bool whole,
                Queries* queries);

  // The blocks that any of the halves' queries sees under `kv_head`, each once: those that not
  // all of them see whole, and a context's last one, if it is short, come first. Up to kHalves.
  Range Add(const AttendArgs& args, int kv_head, absl::Span<const Queries* const> halves);
  // Between problems: what Add remembers is of one.
  void ForgetRanges() { known_.clear(); }

  const std::vector<Run>& runs() const { return runs_; }
  const std::vector<int32_t>& mask_ids() const { return mask_ids_; }
  const std::vector<uint64_t>& masks() const { return masks_; }

 private:
  // Blocks that all halves see alike: as Run::sees.
  struct Cells {
    BlockRun blocks;
    int32_t sees[kHalves] = {kSeesNone, kSeesNone, kSeesNone, kSeesNone};
  };
  struct Known {
    int head_class = 0;
    int64_t q_begin[kHalves];  // −1: no half
    Range range;
  };

  void Unite(absl::Span<const Queries* const> halves);
  void Join(const Queries& queries, size_t h);
  void AddRuns(int64_t short_block, size_t halves, Range* range);
  Cells Within(const Cells& cells, const BlockRun& blocks);
  int32_t Within(int32_t sees, const BlockRun& of, const BlockRun& blocks);

  std::vector<Run> runs_;
  std::vector<int32_t> mask_ids_;
  std::vector<uint64_t> masks_;
  absl::flat_hash_map<std::string, int32_t> known_masks_;
  std::vector<Known> known_;
  int64_t last_q_begin_ = -1;  // of them
  std::vector<Cells> cells_;   // reused, as are those below
  std::vector<Cells> joined_;
  std::vector<BlockRun> rest_;
  std::vector<BlockRun> next_;
  std::string mask_;
};

}  // namespace annulus::cuda
