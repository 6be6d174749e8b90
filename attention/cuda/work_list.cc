#include "attention/cuda/work_list.h"

#include <algorithm>
#include <utility>

#include "attention/cuda/longest_first.h"

namespace annulus::cuda {
namespace {

// A segment's result of its own costs about as much as a few blocks.
constexpr int64_t kPanelBlocksMin = 32;
constexpr int64_t kLaneBlocksMin = 8;
// Blocks that one more segment in a lane costs: its queries, filling the pipeline, its end.
constexpr int64_t kSegmentCost = 4;
// Panels are cut at most so far that there are so many of them for each thread block.
constexpr int64_t kPanelWaves = 8;
// Blocks that one more segment of a panel costs.
constexpr int64_t kPanelSegmentCost = 2;

int DimOf(const KvTable& kv) {
  const int dim = std::max(kv.head_dim(), kv.v_head_dim());
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

bool OnMatrixUnits(const AttendArgs& args) {
  return args.kv->dtype() != DType::kF32 && args.q.dtype == args.kv->dtype() && args.scale > 0;
}

int RowsOf(const Half& half) {
  return half.tokens * half.heads;
}

}  // namespace

Format FormatOf(DType dtype) {
  if (dtype == DType::kF32) return Format::kF32;
  return dtype == DType::kF16 ? Format::kF16 : Format::kBF16;
}

void WorkList::Make(absl::Span<const AttendArgs> batch, const Slots& slots) {
  tiles_.clear();
  tile_blocks_.clear();
  runs_.clear();
  mask_ids_.clear();
  masks_.clear();
  segments_.clear();
  lanes_.clear();
  launches_.clear();
  split_tiles_.clear();
  groups_.clear();
  known_masks_.clear();
  v_head_dims_.clear();
  state_floats_ = 0;
  for (const AttendArgs& args : batch) v_head_dims_.push_back(args.kv->v_head_dim());
  for (problem_ = 0; problem_ < std::ssize(batch); ++problem_) {
    AddProblem(batch[static_cast<size_t>(problem_)]);
  }
  for (Group& group : groups_) {
    const int of_kernel = slots.Of(group.launch.kernel, group.launch.dim);
    if (group.launch.kernel == Kernel::kStream) {
      CutLanes(&group, of_kernel);
    } else {
      Cut(&group, of_kernel);
    }
  }
}

void WorkList::AddProblem(const AttendArgs& args) {
  const int kv_head_first = args.heads.first / args.group;
  const int kv_head_end = (args.heads.end() - 1) / args.group + 1;
  waiting_.assign(static_cast<size_t>(kv_head_end), std::nullopt);
  int64_t row = 0;
  for (const TokenRange& range : args.q_ranges) {
    for (int64_t begin = range.begin; begin < range.end;) {
      const int64_t end = std::min(range.end, (begin / kBlockTokens + 1) * kBlockTokens);
      known_runs_.clear();
      Queries queries;
      int head_class = -1;
      for (int kv_head = kv_head_first; kv_head < kv_head_end; ++kv_head) {
        if (args.pattern->HeadClass(kv_head) != head_class) {
          head_class = args.pattern->HeadClass(kv_head);
          queries.q = {begin, end};
          PiecesOf(args, kv_head, queries.q, &queries.pieces);
        }
        if (!queries.pieces.empty()) {
          AddQueries(args, kv_head, static_cast<int32_t>(row), queries);
        }
      }
      row += end - begin;
      begin = end;
    }
  }
  known_runs_.clear();
  for (int kv_head = kv_head_first; kv_head < kv_head_end; ++kv_head) {
    const auto& waiting = waiting_[static_cast<size_t>(kv_head)];
    if (!waiting.has_value()) continue;
    AddTile(args, kv_head, Kernel::kPanel, RunsOf(args, kv_head, waiting->queries, false),
            waiting->half, nullptr);
    known_runs_.clear();  // other heads may wait with other queries
  }
}

void WorkList::AddQueries(const AttendArgs& args, int kv_head, int32_t row_first,
                          const Queries& queries) {
  const int head_first = std::max(kv_head * args.group, args.heads.first) - args.heads.first;
  const int head_end = std::min((kv_head + 1) * args.group, args.heads.end()) - args.heads.first;
  const auto tokens = static_cast<int>(queries.q.size());
  Kernel kernel = Kernel::kSimple;
  if (OnMatrixUnits(args)) {
    const bool few = tokens * (head_end - head_first) <= kStreamRows;
    kernel = few ? Kernel::kStream : Kernel::kPanel;
  }
  const int step = std::max(1, kPanelRows / tokens);
  std::optional<Half> first;
  for (int head = head_first; head < head_end; head += step) {
    Half half;
    half.row_first = row_first;
    half.tokens = tokens;
    half.head_first = head;
    half.heads = std::min(step, head_end - head);
    half.mask_row = static_cast<int32_t>(queries.q.begin % kBlockTokens);
    if (kernel != Kernel::kPanel) {
      AddTile(args, kv_head, kernel, RunsOf(args, kv_head, queries, false), half, nullptr);
    } else if (!first.has_value()) {
      first = half;
    } else {
      AddTile(args, kv_head, kernel, RunsOf(args, kv_head, queries, true), *first, &half);
      first.reset();
    }
  }
  if (!first.has_value()) return;
  std::optional<Waiting>& waiting = waiting_[static_cast<size_t>(kv_head)];
  if (!waiting.has_value()) {
    waiting = Waiting{*first, queries};
    return;
  }
  AddTile(args, kv_head, kernel, RunsOfTwo(args, kv_head, waiting->queries, queries), waiting->half,
          &*first);
  waiting.reset();
}

void WorkList::AddTile(const AttendArgs& args, int kv_head, Kernel kernel, const KnownRuns& runs,
                       const Half& a, const Half* b) {
  Launch launch{kernel, Format::kF32, 0, 0, 0};
  if (kernel != Kernel::kSimple) {
    launch.format = FormatOf(args.kv->dtype());
    launch.dim = DimOf(*args.kv);
  }
  auto group = std::find_if(groups_.begin(), groups_.end(),
                            [&](const Group& g) { return g.launch.SameKernel(launch); });
  if (group == groups_.end()) group = groups_.insert(group, Group{launch, {}});
  group->tiles.push_back(static_cast<int32_t>(tiles_.size()));
  Tile tile;
  tile.problem = problem_;
  tile.kv_head = kv_head - args.kv->kv_head_first();
  tile.half[0] = a;
  if (b != nullptr) tile.half[1] = *b;
  tile.run_first = runs.first;
  tile.run_end = runs.end;
  int64_t blocks = 0;
  for (int32_t i = runs.first; i < runs.end; ++i) blocks += runs_[static_cast<size_t>(i)].count;
  tiles_.push_back(tile);
  tile_blocks_.push_back(blocks);
}

void WorkList::PiecesOf(const AttendArgs& args, int kv_head, TokenRange q,
                        std::vector<Piece>* pieces) {
  pieces->clear();
  args.pattern->Row(kv_head, q, args.kv_tokens, &row_);
  for (const TileRun& seen : row_) {
    for (const BlockRun& keys : args.keys->runs()) {
      const BlockRun common = Intersect(seen.blocks, keys);
      if (common.count != 0) pieces->push_back({common, seen.full});
    }
  }
}

// What queries see of these blocks, as in Run::sees. Masks repeat from block to block; each is kept
// once.
int32_t WorkList::Sees(const AttendArgs& args, int kv_head, TokenRange q, bool full,
                       const BlockRun& blocks) {
  if (full) return kSeesAll;
  const auto first = static_cast<int32_t>(mask_ids_.size());
  std::string mask(kBlockTokens * sizeof(uint64_t), '\0');
  for (int64_t i = 0; i < blocks.count; ++i) {
    args.pattern->CellMask(kv_head, q.begin / kBlockTokens, blocks.first + i * blocks.step,
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

void WorkList::AddRun(const BlockRun& blocks, int32_t a, int32_t b) {
  runs_.push_back({static_cast<int32_t>(blocks.first),
                   static_cast<int32_t>(blocks.step),
                   static_cast<int32_t>(blocks.count),
                   {a, b}});
}

WorkList::KnownRuns WorkList::RunsOf(const AttendArgs& args, int kv_head, const Queries& a,
                                     bool twice) {
  const int head_class = args.pattern->HeadClass(kv_head);
  for (const KnownRuns& known : known_runs_) {
    if (known.head_class == head_class && known.twice == twice && known.other_q_begin < 0) {
      return known;
    }
  }
  KnownRuns runs{head_class, twice, -1, static_cast<int32_t>(runs_.size()), 0};
  for (const Piece& piece : a.pieces) {
    const int32_t sees = Sees(args, kv_head, a.q, piece.full, piece.blocks);
    AddRun(piece.blocks, sees, twice ? sees : kSeesNone);
  }
  runs.end = static_cast<int32_t>(runs_.size());
  known_runs_.push_back(runs);
  return runs;
}

WorkList::KnownRuns WorkList::RunsOfTwo(const AttendArgs& args, int kv_head, const Queries& a,
                                        const Queries& b) {
  const int head_class = args.pattern->HeadClass(kv_head);
  for (const KnownRuns& known : known_runs_) {
    if (known.head_class == head_class && known.other_q_begin == a.q.begin) return known;
  }
  KnownRuns runs{head_class, false, a.q.begin, static_cast<int32_t>(runs_.size()), 0};
  std::vector<BlockRun> rest;
  std::vector<BlockRun> next;
  const auto subtract = [&](const BlockRun& from, const std::vector<Piece>& pieces) {
    rest.assign(1, from);
    for (const Piece& piece : pieces) {
      next.clear();
      for (const BlockRun& run : rest) AppendDifference(run, piece.blocks, &next);
      rest.swap(next);
    }
  };
  for (const Piece& x : a.pieces) {
    for (const Piece& y : b.pieces) {
      const BlockRun common = Intersect(x.blocks, y.blocks);
      if (common.count == 0) continue;
      AddRun(common, Sees(args, kv_head, a.q, x.full, common),
             Sees(args, kv_head, b.q, y.full, common));
    }
    subtract(x.blocks, b.pieces);
    for (const BlockRun& run : rest) {
      AddRun(run, Sees(args, kv_head, a.q, x.full, run), kSeesNone);
    }
  }
  for (const Piece& y : b.pieces) {
    subtract(y.blocks, a.pieces);
    for (const BlockRun& run : rest) {
      AddRun(run, kSeesNone, Sees(args, kv_head, b.q, y.full, run));
    }
  }
  runs.end = static_cast<int32_t>(runs_.size());
  known_runs_.push_back(runs);
  return runs;
}

void WorkList::AddSegment(int32_t tile, int64_t block_first, int64_t blocks) {
  segments_.push_back({tile, static_cast<int32_t>(block_first), static_cast<int32_t>(blocks), -1});
  ++tiles_[static_cast<size_t>(tile)].segments;
}

// Gives the segments from `segment_first` on, whose tiles have several, room for their results.
void WorkList::KeepStates(size_t segment_first) {
  for (size_t i = segment_first; i < segments_.size(); ++i) {
    Segment& segment = segments_[i];
    Tile& tile = tiles_[static_cast<size_t>(segment.tile)];
    if (tile.segments == 1) continue;
    const int64_t rows = RowsOf(tile.half[0]) + RowsOf(tile.half[1]);
    segment.state = state_floats_;
    if (segment.block_first == 0) {
      tile.state_first = state_floats_;
      split_tiles_.push_back(segment.tile);
    }
    state_floats_ += rows * (2 + v_head_dims_[static_cast<size_t>(tile.problem)]);
  }
}

void WorkList::Cut(Group* group, int slots) {
  std::vector<int64_t> sizes;
  int64_t total = 0;
  for (const int32_t t : group->tiles) {
    sizes.push_back(tile_blocks_[static_cast<size_t>(t)]);
    total += sizes.back();
  }
  const int64_t waves = kPanelWaves * slots;
  const int64_t least = std::max(kPanelBlocksMin, (total + waves - 1) / waves);
  const int64_t most = LargestPart(sizes, slots, kPanelSegmentCost, least);
  const size_t first = segments_.size();
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int64_t parts = PartCount(sizes[i], most);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = PartBegin(sizes[i], parts, part);
      AddSegment(group->tiles[i], begin, PartBegin(sizes[i], parts, part + 1) - begin);
    }
  }
  KeepStates(first);
  // Most work first, so that all end together. Neighbours share keys.
  std::stable_sort(segments_.begin() + static_cast<int64_t>(first), segments_.end(),
                   [](const Segment& a, const Segment& b) { return a.blocks > b.blocks; });
  group->launch.first = static_cast<int>(first);
  group->launch.count = static_cast<int>(segments_.size() - first);
  launches_.push_back(group->launch);
}

// Lays the tiles end to end and cuts that into equal lanes, at most as many as run at once: where a
// lane ends, one more segment begins or room for one stays empty, so that each has that much more.
void WorkList::CutLanes(Group* group, int slots) {
  int64_t total = 0;
  for (const int32_t t : group->tiles) {
    total += tile_blocks_[static_cast<size_t>(t)] + kSegmentCost;
  }
  const int64_t most = std::max(kLaneBlocksMin, (total + slots - 1) / slots) + kSegmentCost;
  const size_t first_lane = lanes_.size();
  const size_t first_segment = segments_.size();
  int64_t room = 0;  // in the lane at hand
  for (const int32_t t : group->tiles) {
    const int64_t blocks = tile_blocks_[static_cast<size_t>(t)];
    for (int64_t begin = 0; begin < blocks;) {
      if (room <= kSegmentCost) {
        const auto at = static_cast<int32_t>(segments_.size());
        lanes_.push_back({at, at});
        room = most;
      }
      const int64_t count = std::min(blocks - begin, room - kSegmentCost);
      AddSegment(t, begin, count);
      lanes_.back().end = static_cast<int32_t>(segments_.size());
      room -= count + kSegmentCost;
      begin += count;
    }
  }
  KeepStates(first_segment);
  group->launch.first = static_cast<int>(first_lane);
  group->launch.count = static_cast<int>(lanes_.size() - first_lane);
  launches_.push_back(group->launch);
}

}  // namespace annulus::cuda
