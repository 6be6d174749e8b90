// How the tiles of a batch are cut into segments, in the order in which thread blocks take them.
#include <algorithm>
#include <tuple>
#include <vector>

#include "attention/cuda/longest_first.h"
#include "attention/cuda/work_list.h"

namespace annulus::cuda {
namespace {

// A segment's result of its own costs about as much as a few blocks.
constexpr int64_t kPanelBlocksMin = 32;
constexpr int64_t kLaneBlocksMin = 8;
// Blocks that one more segment in a lane costs: its queries, filling the pipeline, its end.
constexpr int64_t kSegmentCost = 4;
// The cores of a GPU that compute at once share its L2: the keys that they read should fit in.
constexpr int64_t kSectionBytes = int64_t{32} << 20;
// Tiles of one section for each thread block, at least: sections follow one another without a wait.
constexpr int64_t kSectionWaves = 2;
// Tiles that read the same keys at the same time.
constexpr size_t kTeamMax = 4;
// Blocks that one more segment of a panel costs.
constexpr int64_t kPanelSegmentCost = 2;

int RowsOf(const Tile& tile) {
  int rows = 0;
  for (const Half& half : tile.half) rows += half.tokens * half.heads;
  return rows;
}

}  // namespace

void WorkList::AddSegment(int32_t tile, int64_t block_first, int64_t blocks, int64_t step) {
  Tile& own = tiles_[static_cast<size_t>(tile)];
  ++own.segments;
  Segment segment;
  segment.tile = tile;
  segment.problem = own.problem;
  segment.block_first = static_cast<int32_t>(block_first);
  segment.blocks = static_cast<int32_t>(blocks);
  segment.step = static_cast<int32_t>(step);
  segment.run = own.run_first;
  segment.run_at = segment.block_first;
  for (; segment.run_at >= runs()[static_cast<size_t>(segment.run)].count; ++segment.run) {
    segment.run_at -= runs()[static_cast<size_t>(segment.run)].count;
  }
  segments_.push_back(segment);
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
      split_dim_max_ = std::max(split_dim_max_, kv.v_head_dim());
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
  // By problem, then KV head; problems over the same context, one after the other, share theirs.
  const auto continues = [&](size_t problem) {
    return problem > 0 && batch_[problem].kv->stamp() == batch_[problem - 1].kv->stamp();
  };
  std::vector<size_t> first;
  size_t count = 0;
  for (size_t problem = 0; problem < batch_.size(); ++problem) {
    if (continues(problem)) {
      first.push_back(first.back());
      continue;
    }
    first.push_back(count);
    count += static_cast<size_t>(batch_[problem].kv->kv_heads());
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
    if (continues(problem)) continue;
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

// How many tiles, one after the other, are cut alike so that they read the same keys at the same
// time: those of a latent head's query heads, if all have as many.
size_t WorkList::TeamOf(const Group& group) const {
  if (group.launch.dim <= kNarrowDimMax) return 1;
  const auto follows = [&](size_t i) {  // the tile before, with the same runs
    const Tile& a = tiles_[static_cast<size_t>(group.tiles[i - 1])];
    const Tile& b = tiles_[static_cast<size_t>(group.tiles[i])];
    return a.problem == b.problem && a.kv_head == b.kv_head && a.run_first == b.run_first;
  };
  const size_t count = group.tiles.size();
  size_t team = 1;
  while (team < count && follows(team)) ++team;
  if (team > kTeamMax || count % team != 0 || group.launch.slots % static_cast<int>(team) != 0) {
    return 1;
  }
  for (size_t i = 1; i < count; ++i) {
    if (follows(i) != (i % team != 0)) return 1;
  }
  return team;
}

void WorkList::Cut(Group* group) {
  // Most work first, so that all end together. Of equal ones those of a KV head come one after the
  // other, since they share its keys, also if they are of several problems over one context.
  const std::vector<int> sections = SectionsOf(*group);
  const auto order = [&](int32_t t) {
    const Tile& tile = tiles_[static_cast<size_t>(t)];
    return std::tuple(sections[static_cast<size_t>(t)], -tile_blocks_[static_cast<size_t>(t)],
                      tile.kv_head, tile.problem);
  };
  std::stable_sort(group->tiles.begin(), group->tiles.end(),
                   [&](int32_t a, int32_t b) { return order(a) < order(b); });
  const size_t team = TeamOf(*group);
  std::vector<int64_t> sizes;
  sizes.reserve(group->tiles.size() / team);
  for (size_t i = 0; i < group->tiles.size(); i += team) {
    sizes.push_back(tile_blocks_[static_cast<size_t>(group->tiles[i])]);
  }
  const size_t first = segments_.size();
  // Wide heads are few, and their rows so long that a part soon is worth its end.
  const int64_t least = group->launch.dim > kNarrowDimMax ? kLaneBlocksMin : kPanelBlocksMin;
  const int slots = group->launch.slots / static_cast<int>(team);
  for (const Part& part : CutForSlots(sizes, slots, kPanelSegmentCost, least)) {
    for (size_t i = 0; i < team; ++i) {
      AddSegment(group->tiles[part.item * team + i], part.begin, part.size);
      group->launch.blocks += part.size;
    }
  }
  KeepStates(first);
  group->launch.first = static_cast<int>(first);
  group->launch.count = static_cast<int>(segments_.size() - first);
}

// Cuts tiles that are all equally long into lanes of one part each, unless one would be longer than
// `most`. The parts of a tile take turns with its blocks, so that thread blocks that run together
// read memory that lies together.
bool WorkList::CutInTurns(const Group& group, int64_t most) {
  const auto blocks_of = [&](int32_t t) { return tile_blocks_[static_cast<size_t>(t)]; };
  const int64_t blocks = blocks_of(group.tiles[0]);
  const int64_t parts =
      std::min(group.launch.slots / std::ssize(group.tiles), blocks / kLaneBlocksMin);
  if (parts < 2 || (blocks + parts - 1) / parts + kSegmentCost > most ||
      !std::all_of(group.tiles.begin(), group.tiles.end(),
                   [&](int32_t t) { return blocks_of(t) == blocks; })) {
    return false;
  }
  for (const int32_t t : group.tiles) {
    for (int64_t part = 0; part < parts; ++part) {
      const auto at = static_cast<int32_t>(segments_.size());
      lanes_.push_back({at, at + 1, {}});
      AddSegment(t, part, (blocks - part + parts - 1) / parts, parts);
    }
  }
  return true;
}

// Lays the tiles end to end and cuts that into equal lanes: where a lane ends, one more segment
// begins or room for one stays empty, so that each has `most` with that.
void WorkList::CutEndToEnd(const Group& group, int64_t most) {
  int64_t room = 0;  // in the lane at hand
  for (const int32_t t : group.tiles) {
    const int64_t blocks = tile_blocks_[static_cast<size_t>(t)];
    for (int64_t begin = 0; begin < blocks;) {
      if (room <= kSegmentCost) {
        const auto at = static_cast<int32_t>(segments_.size());
        lanes_.push_back({at, at, {}});
        room = most;
      }
      const int64_t count = std::min(blocks - begin, room - kSegmentCost);
      AddSegment(t, begin, count);
      lanes_.back().end = static_cast<int32_t>(segments_.size());
      room -= count + kSegmentCost;
      begin += count;
    }
  }
}

// Into lanes of about as many blocks, at most as many as run at once.
void WorkList::CutLanes(Group* group) {
  const int slots = group->launch.slots;
  int64_t total = 0;
  for (const int32_t t : group->tiles) {
    total += tile_blocks_[static_cast<size_t>(t)] + kSegmentCost;
  }
  const int64_t most = std::max(kLaneBlocksMin, (total + slots - 1) / slots) + kSegmentCost;
  const size_t first_lane = lanes_.size();
  const size_t first_segment = segments_.size();
  if (!CutInTurns(*group, most)) CutEndToEnd(*group, most);
  KeepStates(first_segment);
  for (size_t i = first_lane; i < lanes_.size(); ++i) {
    lanes_[i].start = segments_[static_cast<size_t>(lanes_[i].first)];
  }
  group->launch.first = static_cast<int>(first_lane);
  group->launch.count = static_cast<int>(lanes_.size() - first_lane);
}

}  // namespace annulus::cuda
