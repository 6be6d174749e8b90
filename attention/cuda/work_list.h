// How one batch of the CUDA backend is cut: into tiles (query rows that share a KV head, with the
// runs of KV blocks they see), and those into segments, the unit of a thread block. Pure; reused,
// so that a warm list allocates little. What it makes goes to the device as it is.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "attention/backend.h"
#include "attention/cuda/kernels.h"
#include "attention/cuda/list_key.h"
#include "attention/cuda/page_rows.h"
#include "attention/cuda/tile_runs.h"
#include "attention/cuda/work.h"

namespace annulus::cuda {

// Whether its format and scale are those of kernels on the matrix units.
bool OnMatrixUnits(const AttendArgs& args);

Format FormatOf(DType dtype);

class WorkList {
 public:
  // `slots`: of the device's kernels. The batch must outlive the list's use. A prefill with the
  // list of the one before, as of another layer, keeps it.
  void Make(absl::Span<const AttendArgs> batch, const Slots& slots);
  // Whether Make would keep the list; whether there is one that it may keep.
  bool Keeps(absl::Span<const AttendArgs> batch, const Slots& slots);
  bool may_keep() const { return key_.has_value(); }

  const std::vector<Tile>& tiles() const { return tiles_; }
  const std::vector<Run>& runs() const { return runs_.runs(); }
  const std::vector<int32_t>& ids() const { return runs_.ids(); }
  const std::vector<uint64_t>& masks() const { return runs_.masks(); }
  int64_t BlockOf(const Run& run, int64_t i) const { return runs_.BlockOf(run, i); }
  const std::vector<Segment>& segments() const { return segments_; }
  const std::vector<Lane>& lanes() const { return lanes_; }
  const std::vector<Launch>& launches() const { return launches_; }
  // Tiles with several segments, whose results must be merged.
  const std::vector<int32_t>& split_tiles() const { return split_tiles_; }
  int split_rows_max() const { return split_rows_max_; }  // of one of them
  int split_dim_max() const { return split_dim_max_; }    // of their values
  int64_t state_floats() const { return state_floats_; }
  // What is to be measured before the launches.
  const std::vector<KeyRun>& key_runs() const { return key_runs_; }
  int key_heads_max() const { return key_heads_max_; }
  bool Measured(size_t problem) const { return measured_[problem]; }
  // Of the pages and queries that kernels of sm_90a read, at most kRowStrides; by problem, whether
  // they read any.
  const std::vector<int32_t>& row_strides() const { return row_strides_; }
  bool OnHopper(size_t problem) const { return on_hopper_[problem]; }

 private:
  // A half that waits for others of the same KV head.
  struct Waiting {
    Half half;
    const Queries* queries;
  };
  struct Group {  // tiles of one launch
    Launch launch;
    std::vector<int32_t> tiles;
  };

  void MakeAll(const Slots& slots);
  void AddProblem(const AttendArgs& args, const Slots& slots);
  const Queries& QueriesOf(const AttendArgs& args, int kv_head, TokenRange q);
  void AddQueries(const AttendArgs& args, const Slots& slots, HeadRange heads, int32_t row_first,
                  const Queries& queries);
  void AddWaiting(const AttendArgs& args, const Slots& slots, int kv_head);
  void AddTile(const AttendArgs& args, int kv_head, Kernel kernel,
               absl::Span<const Waiting> halves);
  void See(const AttendArgs& args, const Pattern& pattern, int kv_head, Queries* queries);
  Kernel PanelFor(const AttendArgs& args, const Slots& slots);
  const PageRows& PageRowsFor(const KvTable& kv);
  bool AddRowStrides(const PageRows& rows, int dim);
  void MeasureKeys();
  size_t TeamOf(const Group& group) const;
  void Cut(Group* group);
  void CutLanes(Group* group);
  std::vector<int> SectionsOf(const Group& group) const;
  bool CutInTurns(const Group& group, int64_t most);
  void CutEndToEnd(const Group& group, int64_t most);
  void AddSegment(int32_t tile, int64_t block_first, int64_t blocks, int64_t step = 1);
  void KeepStates(size_t segment_first);

  std::vector<Tile> tiles_;
  std::vector<int64_t> tile_blocks_;
  TileRuns runs_;
  std::vector<Segment> segments_;
  std::vector<Lane> lanes_;
  std::vector<Launch> launches_;
  std::vector<int32_t> split_tiles_;
  int split_rows_max_ = 0;
  int split_dim_max_ = 0;
  int64_t state_floats_ = 0;
  std::vector<int64_t> next_state_;  // by tile
  std::vector<int32_t> row_strides_;
  std::vector<bool> on_hopper_;
  std::vector<KeyRun> key_runs_;
  int key_heads_max_ = 0;
  std::vector<bool> measured_;  // by problem

  absl::Span<const AttendArgs> batch_;
  int32_t problem_ = 0;                        // the one at hand
  std::optional<Kernel> panel_;                // that does its panels, once there are some
  std::deque<Queries> queries_;                // of it; none moves
  std::vector<std::vector<Waiting>> waiting_;  // by its KV head
  std::vector<Group> groups_;
  std::vector<std::pair<int, const Queries*>> classes_;  // of the block of queries at hand
  std::vector<TileRun> row_;                             // reused
  std::vector<TileRun> common_;
  absl::flat_hash_map<uint64_t, PageRows> page_rows_;  // by the table's stamp
  std::optional<ListKey> key_;                         // of a long list of one problem
};

}  // namespace annulus::cuda
