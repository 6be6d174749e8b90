#include "attention/cuda/work_list.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "attention/cuda/longest_first.h"

namespace annulus::cuda {
namespace {

// A segment's result of its own costs about as much as a few blocks.
constexpr int64_t kPanelBlocksMin = 32;
constexpr int64_t kLaneBlocksMin = 8;
// Blocks that one more segment in a lane costs: its queries, filling the pipeline, its end.
constexpr int64_t kSegmentCost = 4;
// The cores of a GPU that compute at once share its L2: the keys that they read should fit in.
constexpr int64_t kSectionBytes = int64_t{32} << 20;
// Tiles of one section for each thread block, at least.
constexpr int64_t kSectionWaves = 8;
// Query rows of a problem whose list is worth being kept.
constexpr int64_t kKeptRows = 512;
// Elements; the copy engine's own bound is far beyond.
constexpr int64_t kRowStrideMax = 1 << 24;
// Blocks that one more segment of a panel costs.
constexpr int64_t kPanelSegmentCost = 2;

int DimOf(const KvTable& kv) {
  const int dim = std::max(kv.head_dim(), kv.v_head_dim());
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

// Scales with which unseen keys weigh nothing and scores of f16 stay in f32's range.
constexpr float kScaleMin = 1e-25f;
constexpr float kScaleMax = 1e25f;

bool OnMatrixUnits(const AttendArgs& args) {
  return args.kv->dtype() != DType::kF32 && args.q.dtype == args.kv->dtype() &&
         args.scale >= kScaleMin && args.scale <= kScaleMax;
}

int RowsOf(const Tile& tile) {
  int rows = 0;
  for (const Half& half : tile.half) rows += half.tokens * half.heads;
  return rows;
}

}  // namespace

Format FormatOf(DType dtype) {
  if (dtype == DType::kF32) return Format::kF32;
  return dtype == DType::kF16 ? Format::kF16 : Format::kBF16;
}

void WorkList::Make(absl::Span<const AttendArgs> batch, const Slots& slots) {
  const bool is_long = batch.size() == 1 && batch[0].q.tokens >= kKeptRows;
  batch_ = batch;
  if (is_long && key_.has_value() && key_->Fits(batch[0], slots)) return;
  key_.reset();
  MakeAll(slots);
  if (is_long) key_.emplace(batch[0], slots);
}

void WorkList::MakeAll(const Slots& slots) {
  tiles_.clear();
  tile_blocks_.clear();
  runs_.Clear();
  segments_.clear();
  lanes_.clear();
  launches_.clear();
  split_tiles_.clear();
  groups_.clear();
  row_strides_.clear();
  on_panel90_.assign(batch_.size(), false);
  split_rows_max_ = 0;
  state_floats_ = 0;
  for (problem_ = 0; problem_ < std::ssize(batch_); ++problem_) {
    AddProblem(batch_[static_cast<size_t>(problem_)], slots);
  }
  MeasureKeys();
  next_state_.assign(tiles_.size(), 0);
  for (Group& group : groups_) {
    group.launch.slots = slots.Of(group.launch.kernel, group.launch.dim);
    if (group.launch.kernel == Kernel::kStream) {
      CutLanes(&group);
    } else {
      Cut(&group);
    }
    launches_.push_back(group.launch);
  }
}

// Of the panels of a problem, if it has any.
Kernel WorkList::PanelFor(const AttendArgs& args, const Slots& slots) {
  const KvTable& kv = *args.kv;
  const bool served = kv.head_dim() == kv.v_head_dim() && kv.head_dim() == DimOf(kv) &&
                      slots.Of(Kernel::kPanel90, kv.head_dim()) != 0 && OnMatrixUnits(args);
  if (!served || !AddRowStrides(kv)) return Kernel::kPanel;
  // Queries that the copy engine cannot read are copied by threads.
  const int64_t stride =
      args.memory == MemoryKind::kHost ? args.q.heads * args.q.dim : args.q.token_stride;
  const bool aligned = stride % 8 == 0 && args.q.head_stride % 8 == 0 && stride >= args.q.dim &&
                       stride <= kRowStrideMax;
  const auto end = row_strides_.end();
  if (aligned && row_strides_.size() < kRowStrides &&
      std::find(row_strides_.begin(), end, static_cast<int32_t>(stride)) == end) {
    row_strides_.push_back(static_cast<int32_t>(stride));
  }
  return Kernel::kPanel90;
}

// Whether there is room for the strides of all pages of the table.
bool WorkList::AddRowStrides(const KvTable& kv) {
  const size_t before = row_strides_.size();
  int32_t last = 0;  // most pages are as the one before
  const auto add = [&](int32_t stride) {
    if (stride == last) return true;
    last = stride;
    if (std::find(row_strides_.begin(), row_strides_.end(), stride) != row_strides_.end()) {
      return true;
    }
    // The copy engine counts in 16 bytes.
    if (stride < kv.head_dim() || stride % 8 != 0 || stride > kRowStrideMax) return false;
    row_strides_.push_back(stride);
    return row_strides_.size() <= kRowStrides;
  };
  bool room = true;
  if (kv.memory() == MemoryKind::kHost) {  // copied without gaps
    room = add(kv.head_dim());
  } else {
    for (int64_t block = 0; room && block < kv.blocks(); ++block) {
      for (int head = kv.kv_head_first(); room && head < kv.kv_head_first() + kv.kv_heads();
           ++head) {
        const KvPage& page = kv.page(head, block);
        if (page.k != nullptr) room = add(page.k_row_stride) && add(page.v_row_stride);
      }
    }
  }
  if (!room) row_strides_.resize(before);
  return room;
}

void WorkList::AddProblem(const AttendArgs& args, const Slots& slots) {
  const int kv_head_first = args.heads.first / args.group;
  const int kv_head_end = (args.heads.end() - 1) / args.group + 1;
  waiting_.resize(static_cast<size_t>(kv_head_end));
  queries_.clear();
  runs_.ForgetRanges();
  panel_.reset();
  int64_t row = 0;
  for (const TokenRange& range : args.q_ranges) {
    for (int64_t begin = range.begin; begin < range.end;) {
      const int64_t end = std::min(range.end, (begin / kBlockTokens + 1) * kBlockTokens);
      int head_class = -1;
      for (int kv_head = kv_head_first; kv_head < kv_head_end; ++kv_head) {
        if (args.pattern->HeadClass(kv_head) != head_class) {
          head_class = args.pattern->HeadClass(kv_head);
          queries_.push_back({{begin, end}, {}});
          PiecesOf(args, kv_head, &queries_.back());
        }
        if (!queries_.back().pieces.empty()) {
          AddQueries(args, slots, kv_head, static_cast<int32_t>(row), queries_.back());
        }
      }
      row += end - begin;
      begin = end;
    }
  }
  for (int kv_head = kv_head_first; kv_head < kv_head_end; ++kv_head) {
    std::vector<Waiting>& waiting = waiting_[static_cast<size_t>(kv_head)];
    if (!waiting.empty()) AddTile(args, kv_head, *panel_, waiting);
    waiting.clear();
  }
}

void WorkList::AddQueries(const AttendArgs& args, const Slots& slots, int kv_head,
                          int32_t row_first, const Queries& queries) {
  const int head_first = std::max(kv_head * args.group, args.heads.first) - args.heads.first;
  const int head_end = std::min((kv_head + 1) * args.group, args.heads.end()) - args.heads.first;
  const auto tokens = static_cast<int>(queries.q.size());
  Kernel kernel = Kernel::kSimple;
  if (OnMatrixUnits(args)) {
    const bool few = tokens * (head_end - head_first) <= kStreamRows;
    // A decode step does not look at all pages of its context.
    if (!few && !panel_.has_value()) panel_ = PanelFor(args, slots);
    kernel = few ? Kernel::kStream : *panel_;
  }
  const int step = std::max(1, kPanelRows / tokens);
  const auto halves = static_cast<size_t>(HalvesOf(kernel, DimOf(*args.kv)));
  std::vector<Waiting>& waiting = waiting_[static_cast<size_t>(kv_head)];
  for (int head = head_first; head < head_end; head += step) {
    Half half;
    half.row_first = row_first;
    half.tokens = static_cast<int16_t>(tokens);
    half.head_first = head;
    half.heads = static_cast<int16_t>(std::min(step, head_end - head));
    half.mask_row = static_cast<int16_t>(queries.q.begin % kBlockTokens);
    if (halves == 1) {
      AddTile(args, kv_head, kernel, {{half, &queries}});
      continue;
    }
    waiting.push_back({half, &queries});
    if (waiting.size() < halves) continue;
    AddTile(args, kv_head, kernel, waiting);
    waiting.clear();
  }
}

void WorkList::AddTile(const AttendArgs& args, int kv_head, Kernel kernel,
                       absl::Span<const Waiting> halves) {
  Launch launch;
  launch.kernel = kernel;
  if (kernel != Kernel::kSimple) {
    launch.format = FormatOf(args.kv->dtype());
    launch.dim = DimOf(*args.kv);
  }
  auto group = std::find_if(groups_.begin(), groups_.end(),
                            [&](const Group& g) { return g.launch.SameKernel(launch); });
  if (group == groups_.end()) group = groups_.insert(group, Group{launch, {}});
  group->tiles.push_back(static_cast<int32_t>(tiles_.size()));
  if (kernel == Kernel::kPanel90) on_panel90_[static_cast<size_t>(problem_)] = true;
  Tile tile;
  tile.problem = problem_;
  tile.kv_head = kv_head - args.kv->kv_head_first();
  const Queries* queries[kHalves];
  for (size_t h = 0; h < halves.size(); ++h) {
    tile.half[h] = halves[h].half;
    queries[h] = halves[h].queries;
  }
  const TileRuns::Range runs = runs_.Add(args, kv_head, {queries, halves.size()});
  tile.run_first = runs.first;
  tile.run_end = runs.end;
  tile.masked = runs.masked;
  tiles_.push_back(tile);
  tile_blocks_.push_back(runs.blocks);
}

void WorkList::PiecesOf(const AttendArgs& args, int kv_head, Queries* queries) {
  args.pattern->Row(kv_head, queries->q, args.kv_tokens, &row_);
  for (const TileRun& seen : row_) {
    for (const BlockRun& keys : args.keys->runs()) {
      const BlockRun common = Intersect(seen.blocks, keys);
      if (common.count != 0) runs_.AddPiece(args, kv_head, common, seen.full, queries);
    }
  }
}

void WorkList::AddSegment(int32_t tile, int64_t block_first, int64_t blocks) {
  segments_.push_back({tile, static_cast<int32_t>(block_first), static_cast<int32_t>(blocks), -1});
  ++tiles_[static_cast<size_t>(tile)].segments;
}

// Gives the segments from `segment_first` on, whose tiles have several, room for their results:
// those of a tile one after the other.
void WorkList::KeepStates(size_t segment_first) {
  for (size_t i = segment_first; i < segments_.size(); ++i) {
    Segment& segment = segments_[i];
    Tile& tile = tiles_[static_cast<size_t>(segment.tile)];
    if (tile.segments == 1) continue;
    const KvTable& kv = *batch_[static_cast<size_t>(tile.problem)].kv;
    const int rows = RowsOf(tile);
    const int64_t floats = int64_t{rows} * (2 + kv.v_head_dim());
    int64_t& next = next_state_[static_cast<size_t>(segment.tile)];
    if (segment.block_first == 0) {
      tile.state_first = next = state_floats_;
      state_floats_ += tile.segments * floats;
      split_tiles_.push_back(segment.tile);
      split_rows_max_ = std::max(split_rows_max_, rows);
    }
    segment.state = next;
    next += floats;
  }
}

// By tile, which part of the launch it belongs to: the KV heads of one part are done together,
// since their keys fit in the L2, or since fewer would leave thread blocks without work at a part's
// end.
std::vector<int> WorkList::SectionsOf(const Group& group) const {
  struct Head {
    int64_t tiles = 0;
    int section = 0;
  };
  // By problem, then KV head.
  std::vector<size_t> first;
  size_t count = 0;
  for (const AttendArgs& args : batch_) {
    first.push_back(count);
    count += static_cast<size_t>(args.kv->kv_heads());
  }
  const auto index = [&](int32_t t) {
    const Tile& tile = tiles_[static_cast<size_t>(t)];
    return first[static_cast<size_t>(tile.problem)] + static_cast<size_t>(tile.kv_head);
  };
  std::vector<Head> heads(count);
  for (const int32_t t : group.tiles) ++heads[index(t)].tiles;
  int64_t tiles = 0;  // of the section at hand
  int64_t bytes = 0;
  int section = 0;
  for (size_t problem = 0; problem < batch_.size(); ++problem) {
    const KvTable& kv = *batch_[problem].kv;
    const int64_t own = kv.blocks() * kBlockTokens * (kv.head_dim() + kv.v_head_dim()) *
                        static_cast<int64_t>(SizeOf(kv.dtype()));
    for (int h = 0; h < kv.kv_heads(); ++h) {
      Head& head = heads[first[problem] + static_cast<size_t>(h)];
      if (head.tiles == 0) continue;
      if (tiles >= kSectionWaves * group.launch.slots && bytes + own > kSectionBytes) {
        ++section;
        tiles = bytes = 0;
      }
      head.section = section;
      tiles += head.tiles;
      bytes += own;
    }
  }
  // A last section of few tiles would end as unevenly as a short launch.
  const bool join = tiles < kSectionWaves * group.launch.slots;
  std::vector<int> sections(tiles_.size());
  for (const int32_t t : group.tiles) {
    const int own = heads[index(t)].section;
    sections[static_cast<size_t>(t)] = join && own == section ? std::max(0, own - 1) : own;
  }
  return sections;
}

void WorkList::Cut(Group* group) {
  // Most work first, so that all end together. Of equal ones those of a KV head come one after the
  // other, since they share its keys.
  const std::vector<int> sections = SectionsOf(*group);
  const auto order = [&](int32_t t) {
    const Tile& tile = tiles_[static_cast<size_t>(t)];
    return std::tuple(sections[static_cast<size_t>(t)], -tile_blocks_[static_cast<size_t>(t)],
                      tile.problem, tile.kv_head);
  };
  std::stable_sort(group->tiles.begin(), group->tiles.end(),
                   [&](int32_t a, int32_t b) { return order(a) < order(b); });
  std::vector<int64_t> sizes;
  sizes.reserve(group->tiles.size());
  for (const int32_t t : group->tiles) sizes.push_back(tile_blocks_[static_cast<size_t>(t)]);
  const size_t first = segments_.size();
  for (const Part& part :
       CutForSlots(sizes, group->launch.slots, kPanelSegmentCost, kPanelBlocksMin)) {
    AddSegment(group->tiles[part.item], part.begin, part.size);
    group->launch.blocks += part.size;
  }
  KeepStates(first);
  group->launch.first = static_cast<int>(first);
  group->launch.count = static_cast<int>(segments_.size() - first);
}

// Lays the tiles end to end and cuts that into equal lanes, at most as many as run at once: where a
// lane ends, one more segment begins or room for one stays empty, so that each has that much more.
void WorkList::CutLanes(Group* group) {
  const int slots = group->launch.slots;
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
}

}  // namespace annulus::cuda
