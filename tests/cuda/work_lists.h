// Problems without memory, and what the work lists that are made of them let each row see.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "attention/cuda/work_list.h"
#include "tests/catch.h"

namespace annulus {

inline constexpr int kSlots = 264;

inline cuda::Slots SomeSlots(bool hopper = false) {
  cuda::Slots slots;
  for (const int dim : {64, 128, 256}) {
    for (const cuda::Kernel kernel :
         {cuda::Kernel::kSimple, cuda::Kernel::kStream, cuda::Kernel::kPanel}) {
      slots.Set(kernel, dim, dim > 128 ? kSlots / 2 : kSlots);
    }
    if (hopper) slots.Set(cuda::Kernel::kPanel90, dim, kSlots / 2);
    if (hopper && dim <= 128) slots.Set(cuda::Kernel::kSingle90, dim, kSlots);
  }
  for (const int dim : {512, 576}) {
    slots.Set(cuda::Kernel::kWide, dim, kSlots / 2);
    if (hopper) slots.Set(cuda::Kernel::kLatent90, dim, kSlots / 2);
  }
  return slots;
}

// Problems without memory: lists are made of shapes alone.
struct Shapes {
  explicit Shapes(const std::string& text, int heads, int kv_heads, int dim = 128)
      : pattern(*Pattern::Parse(text, kv_heads)), heads(heads), kv_heads(kv_heads), dim(dim) {}

  void Add(int64_t tokens, int64_t queries) {
    tables.push_back(
        std::make_unique<KvTable>(DType::kBF16, 0, kv_heads, dim, dim, BlocksOf(tokens)));
    keys.push_back(std::make_unique<BlockSet>(BlockSet::Range(0, BlocksOf(tokens))));
    AttendArgs args;
    args.q = TensorView::Contiguous(nullptr, DType::kBF16, queries, heads, dim);
    args.q_ranges = {{tokens - queries, tokens}};
    args.heads = {0, heads};
    args.kv_tokens = tokens;
    args.group = heads / kv_heads;
    args.kv = tables.back().get();
    args.pattern = &pattern;
    args.keys = keys.back().get();
    args.into = {nullptr, nullptr, queries, heads, dim};
    batch.push_back(args);
  }

  Pattern pattern;
  int heads;
  int kv_heads;
  int dim;
  std::vector<std::unique_ptr<KvTable>> tables;
  std::vector<std::unique_ptr<BlockSet>> keys;
  std::vector<AttendArgs> batch;
};

// Every tile's blocks must be in its segments, each once; how many segments there are.
inline size_t CheckSegments(const cuda::WorkList& list) {
  std::vector<std::vector<int>> parts(list.tiles().size());
  std::vector<int> segments(list.tiles().size());
  for (const cuda::Segment& segment : list.segments()) {
    REQUIRE(segment.blocks > 0);
    const auto tile = static_cast<size_t>(segment.tile);
    ++segments[tile];
    for (int i = 0; i < segment.blocks; ++i) {
      parts[tile].push_back(segment.block_first + i * segment.step);
    }
  }
  for (size_t t = 0; t < parts.size(); ++t) {
    const cuda::Tile& tile = list.tiles()[t];
    std::sort(parts[t].begin(), parts[t].end());
    REQUIRE(segments[t] == tile.segments);
    int blocks = 0;
    for (const int block : parts[t]) {
      if (block != blocks) FAIL("tile " << t << ": block " << blocks << " is not there once");
      ++blocks;
    }
    for (int r = tile.run_first; r < tile.run_end; ++r) {
      blocks -= list.runs()[static_cast<size_t>(r)].count;
    }
    REQUIRE(blocks == 0);
  }
  return list.segments().size();
}

using KeysByRow = std::map<std::pair<int64_t, int>, std::vector<int64_t>>;

// The keys that each row and head of a tile's halves sees, as the kernels read the list.
inline void AddKeys(const cuda::WorkList& list, const cuda::Tile& tile, int64_t kv_tokens,
                    KeysByRow* seen) {
  int at = 0;  // of the tile's blocks
  for (int r = tile.run_first; r < tile.run_end; ++r) {
    const cuda::Run& run = list.runs()[static_cast<size_t>(r)];
    for (int i = 0; i < run.count; ++i, ++at) {
      const int64_t block = list.BlockOf(run, i);
      bool whole = true;
      for (int h = 0; h < cuda::kHalves; ++h) {
        const cuda::Half& half = tile.half[h];
        const int32_t sees =
            run.sees[h] < 0 ? run.sees[h] : list.ids()[static_cast<size_t>(run.sees[h] + i)];
        if (half.tokens != 0) whole = whole && sees == cuda::kSeesAll;
        if (sees == cuda::kSeesNone) continue;
        REQUIRE(half.tokens > 0);
        REQUIRE(half.tokens * half.heads <= cuda::kPanelRows);
        for (int t = 0; t < half.tokens; ++t) {
          uint64_t mask = ~uint64_t{0};
          if (sees >= 0) {
            const auto id = static_cast<size_t>(sees);
            mask = list.masks()[id * 64 + static_cast<size_t>(half.mask_row + t)];
          }
          for (int head = half.head_first; head < half.head_first + half.heads; ++head) {
            std::vector<int64_t>& keys = (*seen)[{half.row_first + t, head}];
            for (int64_t k = 0; k < 64; ++k) {
              if ((mask >> k & 1) != 0 && block * 64 + k < kv_tokens)
                keys.push_back(block * 64 + k);
            }
          }
        }
      }
      // What not all see whole, or is short, comes first.
      REQUIRE((at < tile.masked || whole));
      REQUIRE((at < tile.masked || (block + 1) * 64 <= kv_tokens));
    }
  }
}

// Of the one problem, against its pattern.
inline void CheckRows(const Shapes& shapes, const cuda::Slots& slots) {
  const AttendArgs& args = shapes.batch[0];
  const int64_t tokens = args.kv_tokens;
  cuda::WorkList list;
  list.Make(shapes.batch, slots);
  CheckSegments(list);
  KeysByRow seen;
  for (const cuda::Tile& tile : list.tiles()) {
    KeysByRow own;
    AddKeys(list, tile, tokens, &own);
    for (auto& [row, keys] : own) {
      REQUIRE(seen.count(row) == 0);  // a row is in one tile
      seen[row] = keys;
    }
  }
  int64_t row = 0;
  for (const TokenRange& range : args.q_ranges) {
    for (int64_t position = range.begin; position < range.end; ++position, ++row) {
      for (int head = 0; head < shapes.heads; ++head) {
        std::vector<int64_t> keys = seen[{row, head}];
        std::sort(keys.begin(), keys.end());
        const Pattern& own = shapes.pattern.Member(head % args.group);
        std::vector<int64_t> wanted;
        for (int64_t k = 0; k < tokens; ++k) {
          if (args.keys->Contains(k / 64) && own.Allows(head / args.group, position, k)) {
            wanted.push_back(k);
          }
        }
        REQUIRE(keys == wanted);
      }
    }
  }
}

}  // namespace annulus
