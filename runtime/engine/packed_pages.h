// Pages one after the other without gaps: how KV travels between ranks, and how ranks are given
// theirs. For each KV head, for each block ascending, the block's K rows [tokens, head_dim], then
// its V rows [tokens, v_head_dim] (none when V is K's prefix), in the problem's dtype: each the
// bytes of a stored page. The context's last block may be short; blocks beyond its end have no
// page. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/kv_view.h"
#include "sharding/plan.h"

namespace annulus {

struct PackedPage {
  int head = 0;
  int64_t block = 0;
  TokenRange tokens;
  size_t at = 0;  // where it begins
};

// Of the KV heads `heads` and these blocks, as they lie.
std::vector<PackedPage> PackedPagesOf(const Problem& problem, HeadRange heads,
                                      const BlockSet& blocks);
size_t PackedBytes(const Problem& problem, HeadRange heads, const BlockSet& blocks);

// Of one row; V's is 0 when V is K's prefix.
size_t KRowBytes(const Problem& problem);
size_t VRowBytes(const Problem& problem);

// The page among packed bytes, which it borrows.
KvPage PageIn(const Problem& problem, const std::byte* packed, const PackedPage& page);

// The table of packed pages that lie in `memory`, with room for all of the problem's blocks.
KvTable TableOf(const Problem& problem, HeadRange heads, const BlockSet& blocks,
                const std::byte* packed, MemoryKind memory);

}  // namespace annulus
