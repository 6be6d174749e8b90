// The KV blocks that a segment of a plan reads, in order, with their pages.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "attention/cpu/kernels.h"
#include "attention/cpu/tile_plan.h"
#include "attention/kv_view.h"

namespace annulus::cpu {

// One after the other. Their pages are looked up many at a time, and
// before that asked for: each lookup misses the caches, and the kernel reads nothing while it
// waits.
class BlockWalk {
 public:
  struct Step {
    int64_t block = 0;
    bool full = false;
    KeyBlock keys;
  };

  BlockWalk(const TilePlan& plan, const Tile& tile, const Segment& segment)
      : plan_(plan),
        tile_(tile),
        grid_(tile.grid_first),
        left_(segment.blocks),
        index_(segment.block_first) {}

  // Null at the end. Stays as it is until the call after the next one.
  const Step* Next() {
    if (given_ == known_) LookUp();
    return given_ == known_ ? nullptr : &ring_[given_++ % ring_.size()];
  }

 private:
  static constexpr int kAtOnce = 32;

  void LookUp() {
    for (int i = 0; i < kAtOnce && left_ > 0; ++i, --left_) {
      ring_[known_++ % ring_.size()] = LookUpOne();
    }
  }

  Step LookUpOne() {
    while (index_ >= plan_.grids()[grid_].size()) {
      index_ -= plan_.grids()[grid_].size();
      ++grid_;
    }
    const BlockGrid& grid = plan_.grids()[grid_];
    Step step{grid.block(index_++), grid.full, {}};
    const KvTable& kv = *tile_.args->kv;
    if (step.block >= kv.blocks()) return step;
    const KvPage& page = kv.page(tile_.kv_head, step.block);
    const int64_t later = step.block + kAtOnce;
    if (later < kv.blocks()) __builtin_prefetch(&kv.page(tile_.kv_head, later));
    const int64_t tokens = tile_.args->kv_tokens - step.block * kBlockTokens;
    step.keys = {page.k,
                 page.v,
                 static_cast<size_t>(page.k_row_stride),
                 static_cast<size_t>(page.v_row_stride),
                 static_cast<int>(std::min(tokens, kBlockTokens)),
                 nullptr};
    return step;
  }

  const TilePlan& plan_;
  const Tile& tile_;
  size_t grid_;
  int64_t left_;
  int64_t index_;
  std::array<Step, 2 * kAtOnce> ring_;
  size_t known_ = 0;  // steps looked up
  size_t given_ = 0;
};

}  // namespace annulus::cpu
