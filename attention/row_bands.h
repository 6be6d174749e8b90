// Rows of blocks in closed form: where the rows of many query blocks follow from one another, a few
// bands stand for all of them, so that a context of millions of tokens costs what its pattern has
// of distinct parts. Plain values and pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/block_set.h"

namespace annulus {

// The KV blocks ≡ first (mod step) in [Begin(q), End(q)) of a query block q: a range whose ends
// stay where they are or move on by one block with each query block.
struct RowBand {
  int64_t begin = 0;
  int64_t end = 0;
  bool begin_moves = false;
  bool end_moves = false;
  int64_t first = 0;
  int64_t step = 1;

  int64_t Begin(int64_t q_block) const { return begin + (begin_moves ? q_block : 0); }
  int64_t End(int64_t q_block) const { return end + (end_moves ? q_block : 0); }
  BlockRun Row(int64_t q_block) const;  // count 0 if there are none
  friend bool operator==(const RowBand&, const RowBand&) = default;
};

// The query blocks [q_begin, q_end): each sees the blocks of every band, which have none in common.
// Begin < End for all of them.
struct RowStretch {
  int64_t q_begin = 0;
  int64_t q_end = 0;
  std::vector<RowBand> bands;
};

// How many blocks of `kv` the query blocks of `rows` see by a band, in sum. `rows` lies within the
// band's stretch.
int64_t BlocksSeen(const RowBand& band, const BlockRun& rows, const BlockRun& kv);

// Appends runs, overlapping or not, of the KV blocks that some row of `rows` sees.
void AppendSeen(const RowBand& band, const BlockRun& rows, std::vector<BlockRun>* out);

// Appends runs, overlapping or not, of the query blocks in [q_begin, q_end) that see a block of
// `kv`.
void AppendSeeing(const RowBand& band, int64_t q_begin, int64_t q_end, const BlockRun& kv,
                  std::vector<BlockRun>* out);

// The query blocks [q_begin, q_end), of which each sees the KV blocks ≡ first (mod step) in
// [k_begin, k_end) with d_min ≤ q − k ≤ d_max. What stretches are made from.
struct BlockBand {
  int64_t q_begin = 0;
  int64_t q_end = 0;
  int64_t k_begin = 0;
  int64_t k_end = 0;
  int64_t d_min = 0;
  int64_t d_max = 0;
  int64_t first = 0;
  int64_t step = 1;
};

// Beyond every block, and far enough from overflow to be added to one.
inline constexpr int64_t kFarBlocks = int64_t{1} << 54;

// The union of the bands as ascending stretches, which leave out query blocks that see nothing;
// `out` is empty before. False where bands with steps overlap, or where it takes more than
// `bands_max` bands.
bool MakeStretches(std::vector<BlockBand> bands, int64_t bands_max, std::vector<RowStretch>* out);

}  // namespace annulus
