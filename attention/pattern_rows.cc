#include "attention/pattern_rows.h"

#include <algorithm>
#include <numeric>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"

namespace annulus {
namespace {

// Up to so many overlapping runs, and so many pieces that come of them, runs are made disjoint in
// pairs; beyond it they are painted block by block, which costs what is visited.
constexpr size_t kPairedRunsMax = 48;
constexpr size_t kPiecesMax = 4096;

// Contested ranges times runs that are treated range by range; beyond, as one range.
constexpr size_t kSplitsMax = size_t{1} << 16;

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
};

void AppendRun(int64_t first, int64_t count, int64_t step, bool full, std::vector<TileRun>* out) {
  if (count > 0) out->push_back({{first, count, count == 1 ? 1 : step}, full});
}

// Partial, full, partial: the runs of indices [low, high] of which [full_low, full_high] are full.
void AppendThree(BlockRun run, int64_t low, int64_t high, int64_t full_low, int64_t full_high,
                 std::vector<TileRun>* out) {
  full_low = std::max(full_low, low);
  full_high = std::min(full_high, high);
  if (full_low > full_high) {
    full_low = high + 1;
    full_high = high;
  }
  AppendRun(run.first + low * run.step, full_low - low, run.step, false, out);
  AppendRun(run.first + full_low * run.step, full_high - full_low + 1, run.step, true, out);
  AppendRun(run.first + (full_high + 1) * run.step, high - full_high, run.step, false, out);
}

// The blocks of the keys [any.begin, any.end), of which every row sees those in `all`.
void AppendRange(Range any, Range all, int64_t kv_tokens, std::vector<TileRun>* out) {
  const int64_t full_high =
      all.end >= kv_tokens ? BlocksOf(kv_tokens) - 1 : FloorDiv(all.end, kBlockTokens) - 1;
  AppendThree({0, 1, 1}, any.begin / kBlockTokens, (any.end - 1) / kBlockTokens,
              CeilDiv(all.begin, kBlockTokens), full_high, out);
}

// The comb's teeth from `tooth` on, `period` apart and ending on the same place of a block each
// time: one run for every block that a tooth touches.
void AppendTeeth(int64_t tooth, int64_t length, int64_t period, Range any, Range all,
                 std::vector<TileRun>* out) {
  for (int64_t block = FloorDiv(tooth, kBlockTokens); block * kBlockTokens < tooth + length;
       ++block) {
    const int64_t base = block * kBlockTokens;
    const int64_t begin = std::max(tooth, base);
    const int64_t end = std::min(tooth + length, base + kBlockTokens);
    const int64_t low = std::max<int64_t>(0, CeilDiv(any.begin + 1 - end, period));
    const int64_t high = FloorDiv(any.end - 1 - begin, period);
    int64_t full_low = high + 1;
    int64_t full_high = high;
    if (end - begin == kBlockTokens) {
      full_low = CeilDiv(all.begin - begin, period);
      full_high = FloorDiv(all.end - end, period);
    }
    if (low <= high) {
      AppendThree({block, 1, period / kBlockTokens}, low, high, full_low, full_high, out);
    }
  }
}

void AppendComb(const Comb& comb, Range any, Range all, int64_t kv_tokens,
                std::vector<TileRun>* out) {
  any = {comb.NextFrom(any.begin), comb.LastTo(any.end - 1) + 1};
  if (any.begin >= any.end) return;
  if (comb.period - comb.length < kBlockTokens) {
    // No gap holds a whole block. Nor does a tooth: a comb's gap is at least as long as its tooth.
    AppendRange(any, {0, 0}, kv_tokens, out);
    return;
  }
  const int64_t first = FloorDiv(any.begin - comb.first, comb.period);
  const int64_t teeth = FloorDiv(any.end - 1 - comb.first, comb.period) - first + 1;
  // Teeth this many apart lie alike in their blocks.
  const int64_t alike = kBlockTokens / std::gcd(comb.period, kBlockTokens);
  const int64_t tooth = comb.first + first * comb.period;
  if (teeth <= alike * ((comb.length - 1) / kBlockTokens + 2)) {
    for (int64_t t = 0; t < teeth; ++t) {
      const int64_t begin = tooth + t * comb.period;
      const int64_t end = begin + comb.length;
      AppendRange({std::max(any.begin, begin), std::min(any.end, end)},
                  {std::max(all.begin, begin), std::min(all.end, end)}, kv_tokens, out);
    }
    return;
  }
  for (int64_t t = 0; t < alike; ++t) {
    AppendTeeth(tooth + t * comb.period, comb.length, alike * comb.period, any, all, out);
  }
}

bool ByFirst(const TileRun& a, const TileRun& b) {
  return a.blocks.first < b.blocks.first;
}

// Joins neighbours of one kind, so that a backend sees the fewest runs.
void JoinNeighbours(std::vector<TileRun>* tiles) {
  size_t kept = 0;
  for (const TileRun& tile : *tiles) {
    if (kept > 0) {
      TileRun& back = (*tiles)[kept - 1];
      if (back.full == tile.full && back.blocks.step == 1 && tile.blocks.step == 1 &&
          back.blocks.last() + 1 == tile.blocks.first) {
        back.blocks.count += tile.blocks.count;
        continue;
      }
    }
    (*tiles)[kept++] = tile;
  }
  tiles->resize(kept);
}

// The ranges of the runs without gaps, in order and joined; all of them or the full ones only.
std::vector<Range> Ranges(const std::vector<TileRun>& tiles, bool full_only) {
  std::vector<Range> ranges;
  for (const TileRun& tile : tiles) {
    if (tile.blocks.step != 1 || (full_only && !tile.full)) continue;
    ranges.push_back({tile.blocks.first, tile.blocks.last() + 1});
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> joined;
  for (const Range& range : ranges) {
    if (joined.empty() || joined.back().end < range.begin) joined.push_back(range);
    joined.back().end = std::max(joined.back().end, range.end);
  }
  return joined;
}

bool Within(const BlockRun& run, const std::vector<Range>& joined) {
  const auto after =
      std::upper_bound(joined.begin(), joined.end(), run.first,
                       [](int64_t block, const Range& range) { return block < range.begin; });
  return after != joined.begin() && run.last() < (after - 1)->end;
}

// Drops the runs with gaps that ranges hold at least as full: what a comb adds to a range is
// nothing, however many teeth it has.
void DropCovered(std::vector<TileRun>* tiles) {
  const std::vector<Range> full = Ranges(*tiles, true);
  const std::vector<Range> any = Ranges(*tiles, false);
  const auto covered = [&](const TileRun& tile) {
    return tile.blocks.step != 1 && Within(tile.blocks, tile.full ? full : any);
  };
  tiles->erase(std::remove_if(tiles->begin(), tiles->end(), covered), tiles->end());
}

// Takes from each run what an earlier one holds; full runs come first, since full beats partial.
// False, and nothing is taken, where that leaves too many pieces: steps without a common divisor
// cut a run once per residue.
bool SeparateInPairs(std::vector<TileRun>* tiles) {
  std::stable_partition(tiles->begin(), tiles->end(), [](const TileRun& t) { return t.full; });
  std::vector<TileRun> held;
  std::vector<BlockRun> left;
  std::vector<BlockRun> rest;
  for (const TileRun& tile : *tiles) {
    left.assign(1, tile.blocks);
    for (const TileRun& other : held) {
      rest.clear();
      for (const BlockRun& run : left) AppendDifference(run, other.blocks, &rest);
      left.swap(rest);
      if (left.empty()) break;
      if (held.size() + left.size() > kPiecesMax) return false;
    }
    for (const BlockRun& run : left) held.push_back({run, tile.full});
  }
  tiles->swap(held);
  return true;
}

// Paints every block once and reads the runs off.
void SeparateByBlock(std::vector<TileRun>* tiles) {
  int64_t first = tiles->front().blocks.first;
  int64_t last = first;
  for (const TileRun& tile : *tiles) {
    first = std::min(first, tile.blocks.first);
    last = std::max(last, tile.blocks.last());
  }
  enum : uint8_t { kNone, kPartial, kFull };
  std::vector<uint8_t> paint(last - first + 1, kNone);
  for (const TileRun& tile : *tiles) {
    const uint8_t colour = tile.full ? kFull : kPartial;
    for (int64_t i = 0; i < tile.blocks.count; ++i) {
      uint8_t& cell = paint[tile.blocks.first - first + i * tile.blocks.step];
      cell = std::max(cell, colour);
    }
  }
  tiles->clear();
  for (const uint8_t colour : {kPartial, kFull}) {
    std::vector<int64_t> blocks;
    for (int64_t i = 0; i <= last - first; ++i) {
      if (paint[i] == colour) blocks.push_back(first + i);
    }
    const BlockSet set = BlockSet::FromBlocks(blocks);
    for (const BlockRun& run : set.runs()) {
      tiles->push_back({run, colour == kFull});
    }
  }
}

// Makes the runs disjoint within the block ranges `contested`; outside of them they are already.
void Separate(absl::Span<const Range> contested, std::vector<TileRun>* tiles) {
  std::vector<TileRun> outside;
  std::vector<TileRun> inside;
  std::vector<TileRun> separated;
  for (const Range& range : contested) {
    outside.clear();
    inside.clear();
    for (const TileRun& tile : *tiles) {
      const BlockRun& run = tile.blocks;
      const int64_t low =
          std::clamp<int64_t>(CeilDiv(range.begin - run.first, run.step), 0, run.count);
      const int64_t high =
          std::clamp<int64_t>(CeilDiv(range.end - run.first, run.step), low, run.count);
      AppendRun(run.first, low, run.step, tile.full, &outside);
      AppendRun(run.first + low * run.step, high - low, run.step, tile.full, &inside);
      AppendRun(run.first + high * run.step, run.count - high, run.step, tile.full, &outside);
    }
    tiles->swap(outside);
    DropCovered(&inside);
    if (inside.size() > kPairedRunsMax || !SeparateInPairs(&inside)) SeparateByBlock(&inside);
    separated.insert(separated.end(), inside.begin(), inside.end());
  }
  tiles->insert(tiles->end(), separated.begin(), separated.end());
}

}  // namespace

void AppendTiles(const Shape& shape, TokenRange q, int64_t kv_tokens, std::vector<TileRun>* out) {
  const Range any{shape.k_begin, shape.k_end};
  Range all{0, 0};
  if (shape.q_begin == q.begin && shape.q_end == q.end) {
    all.begin = std::max(any.begin, shape.q_end - 1 - shape.d_max);
    all.end = std::min(any.end, shape.q_begin - shape.d_min + 1);
  }
  if (shape.comb.all()) {
    AppendRange(any, all, kv_tokens, out);
  } else {
    AppendComb(shape.comb, any, all, kv_tokens, out);
  }
}

void TilesOfUnion(ShapeList* shapes, TokenRange q, int64_t kv_tokens, std::vector<TileRun>* out) {
  out->clear();
  SortByKeys(shapes);
  // Where the blocks of two shapes overlap, mostly nowhere or in the one block they share.
  absl::InlinedVector<Range, 8> contested;
  int64_t reach = 0;
  for (const Shape& shape : *shapes) {
    AppendTiles(shape, q, kv_tokens, out);
    const Range blocks{shape.k_begin / kBlockTokens, BlocksOf(shape.k_end)};
    if (blocks.begin < reach) {
      const int64_t end = std::min(reach, blocks.end);
      if (!contested.empty() && blocks.begin <= contested.back().end) {
        contested.back().end = std::max(contested.back().end, end);
      } else {
        contested.push_back({blocks.begin, end});
      }
    }
    reach = std::max(reach, blocks.end);
  }
  if (contested.size() * out->size() > kSplitsMax) {
    contested.assign(1, {contested.front().begin, contested.back().end});
  }
  if (!contested.empty()) Separate(contested, out);
  std::sort(out->begin(), out->end(), ByFirst);
  JoinNeighbours(out);
}

void RunMaker::Add(int64_t block, bool full) {
  BlockRun& run = run_.blocks;
  if (run.count == 1 && full == run_.full) {
    run.step = block - run.first;
    ++run.count;
  } else if (run.count > 1 && full == run_.full && block == run.last() + run.step) {
    ++run.count;
  } else if (run.count == 2 && run.step > 1 && full == run_.full) {
    // Two far blocks are a run only by chance: the second begins the next one.
    out_.push_back({{run.first, 1, 1}, full});
    run = {run.last(), 2, block - run.last()};
  } else {
    Finish();
    run_ = {{block, 1, 1}, full};
  }
}

void RunMaker::Finish() {
  if (run_.blocks.count > 0) out_.push_back(run_);
  run_.blocks = {0, 0, 1};
}

}  // namespace annulus
