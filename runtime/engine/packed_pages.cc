#include "runtime/engine/packed_pages.h"

#include <algorithm>

namespace annulus {

size_t KRowBytes(const Problem& problem) {
  return static_cast<size_t>(problem.head_dim) * SizeOf(problem.dtype);
}

size_t VRowBytes(const Problem& problem) {
  return problem.v_is_k_prefix ? 0
                               : static_cast<size_t>(problem.v_head_dim) * SizeOf(problem.dtype);
}

std::vector<PackedPage> PackedPagesOf(const Problem& problem, HeadRange heads,
                                      const BlockSet& blocks) {
  const size_t token_bytes = KRowBytes(problem) + VRowBytes(problem);
  const std::vector<int64_t> all = blocks.ToVector();
  std::vector<PackedPage> pages;
  pages.reserve(static_cast<size_t>(heads.count) * all.size());
  size_t at = 0;
  for (int head = heads.first; head < heads.end(); ++head) {
    for (const int64_t block : all) {
      const int64_t begin = block * kBlockTokens;
      const TokenRange tokens{begin, std::min(begin + kBlockTokens, problem.keys().end)};
      if (tokens.size() <= 0) continue;
      pages.push_back({head, block, tokens, at});
      at += static_cast<size_t>(tokens.size()) * token_bytes;
    }
  }
  return pages;
}

size_t PackedBytes(const Problem& problem, HeadRange heads, const BlockSet& blocks) {
  return static_cast<size_t>(blocks.TokenCount(problem.keys().end) * heads.count) *
         (KRowBytes(problem) + VRowBytes(problem));
}

KvPage PageIn(const Problem& problem, const std::byte* packed, const PackedPage& page) {
  const std::byte* k = packed + page.at;
  if (problem.v_is_k_prefix) return {k, k, problem.head_dim, problem.head_dim};
  const std::byte* v = k + static_cast<size_t>(page.tokens.size()) * KRowBytes(problem);
  return {k, v, problem.head_dim, problem.v_head_dim};
}

KvTable TableOf(const Problem& problem, HeadRange heads, const BlockSet& blocks,
                const std::byte* packed, MemoryKind memory) {
  KvTable table(problem.dtype, heads.first, heads.count, problem.head_dim, problem.v_head_dim,
                BlocksOf(problem.keys().end));
  table.set_memory(memory);
  for (const PackedPage& page : PackedPagesOf(problem, heads, blocks)) {
    table.Set(page.head, page.block, PageIn(problem, packed, page));
  }
  return table;
}

}  // namespace annulus
