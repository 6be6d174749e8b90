// How an append is cut by owner and travels: for each block that the rank owns, ascending, and each
// of its KV heads, the K rows of the new tokens of that block and then their V rows (no V when V is
// K's prefix), in the context's dtype. A whole block is then exactly its page's bytes.
// Pure functions.
#pragma once

#include <algorithm>
#include <cstdint>

#include "annulus/buffer.h"
#include "annulus/tensor.h"
#include "annulus/types.h"
#include "sharding/layout.h"

namespace annulus {

// Calls fn(block, rows) for each block of `rank` that holds some of tokens [begin, end), ascending;
// rows are their absolute positions within that block.
template <typename Fn>
void ForEachOwnedBlock(const Layout& layout, int rank, TokenRange tokens, Fn fn) {
  if (layout.KvHeads(rank).empty()) return;
  for (int64_t block = tokens.begin / kBlockTokens; block < BlocksOf(tokens.end); ++block) {
    if (layout.tokens().Owner(block) != layout.TokenGroup(rank)) continue;
    fn(block, TokenRange{std::max(tokens.begin, block * kBlockTokens),
                         std::min(tokens.end, (block + 1) * kBlockTokens)});
  }
}

// Bytes that `rank` gets of an append of `tokens`.
int64_t AppendBytes(const ContextSpec& spec, const Layout& layout, int rank, TokenRange tokens);

// k [n, kv_heads, head_dim], v [n, kv_heads, v_head_dim] of any dtype (v unused when it is K's
// prefix), n = tokens.size().
Buffer PackAppend(const ContextSpec& spec, const Layout& layout, int rank, TokenRange tokens,
                  const TensorView& k, const TensorView& v);
// The same at `to`, which has AppendBytes; returns the end.
std::byte* PackAppend(const ContextSpec& spec, const Layout& layout, int rank, TokenRange tokens,
                      const TensorView& k, const TensorView& v, std::byte* to);
// The other way round: puts the rank's rows where they belong in k and v, which are contiguous and
// in the context's dtype.
void UnpackAppend(const ContextSpec& spec, const Layout& layout, int rank, TokenRange tokens,
                  const std::byte* packed, Tensor& k, Tensor& v);

}  // namespace annulus
