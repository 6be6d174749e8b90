// How one batch of the CUDA backend is cut: into tiles (query rows that share a KV head, with the
// runs of KV blocks they see), and those into segments, the unit of a thread block. Pure; reused,
// so that a warm list allocates little. What it makes goes to the device as it is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "attention/backend.h"
#include "attention/cuda/kernels.h"
#include "attention/cuda/work.h"

namespace annulus::cuda {

Format FormatOf(DType dtype);

class WorkList {
 public:
  // `slots`: of the device's kernels. The batch must outlive the list's use.
  void Make(absl::Span<const AttendArgs> batch, const Slots& slots);

  const std::vector<Tile>& tiles() const { return tiles_; }
  const std::vector<Run>& runs() const { return runs_; }
  const std::vector<int32_t>& mask_ids() const { return mask_ids_; }
  const std::vector<uint64_t>& masks() const { return masks_; }
  const std::vector<Segment>& segments() const { return segments_; }
  const std::vector<Lane>& lanes() const { return lanes_; }
  const std::vector<Launch>& launches() const { return launches_; }
  // Tiles with several segments, whose results must be merged.
  const std::vector<int32_t>& split_tiles() const { return split_tiles_; }
  int64_t state_floats() const { return state_floats_; }

 private:
  // Blocks that queries see, all of them whole or all in part.
  struct Piece {
    BlockRun blocks;
    bool full = false;
  };
  // Queries of one block, and what they see under one KV head.
  struct Queries {
    TokenRange q;
    std::vector<Piece> pieces;
  };
  // A half that waits for another one of the same KV head.
  struct Waiting {
    Half half;
    Queries queries;
  };
  // [first, end) of runs_, made for one class of KV heads.
  struct KnownRuns {
    int head_class = 0;
    bool twice = false;          // for two halves that see the same
    int64_t other_q_begin = -1;  // for two that do not: where the other one's queries begin
    int32_t first = 0;
    int32_t end = 0;
  };
  struct Group {  // tiles of one launch
    Launch launch;
    std::vector<int32_t> tiles;
  };

  void AddProblem(const AttendArgs& args);
  void AddQueries(const AttendArgs& args, int kv_head, int32_t row_first, const Queries& queries);
  void AddTile(const AttendArgs& args, int kv_head, Kernel kernel, const KnownRuns& runs,
               const Half& a, const Half* b);
  KnownRuns RunsOf(const AttendArgs& args, int kv_head, const Queries& a, bool twice);
  KnownRuns RunsOfTwo(const AttendArgs& args, int kv_head, const Queries& a, const Queries& b);
  void PiecesOf(const AttendArgs& args, int kv_head, TokenRange q, std::vector<Piece>* pieces);
  int32_t Sees(const AttendArgs& args, int kv_head, TokenRange q, bool full,
               const BlockRun& blocks);
  void AddRun(const BlockRun& blocks, int32_t a, int32_t b);
  void Cut(Group* group, int slots);
  void CutLanes(Group* group, int slots);
  void AddSegment(int32_t tile, int64_t block_first, int64_t blocks);
  void KeepStates(size_t segment_first);

  std::vector<Tile> tiles_;
  std::vector<int64_t> tile_blocks_;
  std::vector<Run> runs_;
  std::vector<int32_t> mask_ids_;
  std::vector<uint64_t> masks_;
  std::vector<Segment> segments_;
  std::vector<Lane> lanes_;
  std::vector<Launch> launches_;
  std::vector<int32_t> split_tiles_;
  int64_t state_floats_ = 0;

  int32_t problem_ = 0;               // the one at hand
  std::vector<int32_t> v_head_dims_;  // by problem
  std::vector<KnownRuns> known_runs_;
  std::vector<std::optional<Waiting>> waiting_;  // by KV head of the problem
  std::vector<Group> groups_;
  absl::flat_hash_map<std::string, int32_t> known_masks_;
  std::vector<TileRun> row_;  // reused
};

}  // namespace annulus::cuda
