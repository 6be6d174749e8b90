#include "runtime/cli/quality/beyond.h"

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

namespace annulus {
namespace {

BlockSet BlocksOfRuns(const std::vector<TileRun>& runs, bool only_full) {
  std::vector<BlockRun> blocks;
  for (const TileRun& run : runs) {
    if (run.full || !only_full) blocks.push_back(run.blocks);
  }
  return BlockSet::FromRuns(std::move(blocks));
}

// Of queries within one block.
std::optional<Pair> BeyondInRow(const Pattern& pattern, const Pattern& dense, int kv_head,
                                TokenRange q, int64_t tokens) {
  std::vector<TileRun> runs;
  pattern.Row(kv_head, q, tokens, &runs);
  const BlockSet shown = BlocksOfRuns(runs, /*only_full=*/false);
  dense.Row(kv_head, q, tokens, &runs);
  // Cells that dense shows whole need no look.
  const BlockSet rest = shown.Subtract(BlocksOfRuns(runs, /*only_full=*/true));
  for (const int64_t block : rest.ToVector()) {
    uint64_t wanted[kBlockTokens], had[kBlockTokens];
    pattern.CellMask(kv_head, q, block, wanted);
    dense.CellMask(kv_head, q, block, had);
    const int64_t keys = std::min(kBlockTokens, tokens - block * kBlockTokens);
    const uint64_t existing = ~uint64_t{0} >> (kBlockTokens - keys);
    for (int64_t row = 0; row < kBlockTokens; ++row) {
      const uint64_t beyond = wanted[row] & ~had[row] & existing;
      if (beyond == 0) continue;
      return Pair{kv_head, q.begin / kBlockTokens * kBlockTokens + row,
                  block * kBlockTokens + std::countr_zero(beyond)};
    }
  }
  return std::nullopt;
}

// Whether an earlier head has both rules.
bool IsAsEarlier(const Pattern& pattern, const Pattern& dense, int kv_head) {
  const int first = pattern.HeadClass(kv_head);
  return first != kv_head && dense.HeadClass(kv_head) == first;
}

}  // namespace

std::optional<Pair> PairBeyond(const Pattern& pattern, const Pattern& dense, TokenRange queries,
                               int64_t tokens) {
  for (int i = 0; i < std::max(pattern.members(), dense.members()); ++i) {
    const Pattern &wanted = pattern.Member(i), &had = dense.Member(i);
    for (int head = 0; head < pattern.kv_heads(); ++head) {
      if (IsAsEarlier(wanted, had, head)) continue;
      for (TokenRange q = queries; q.begin < queries.end; q.begin = q.end) {
        q.end = std::min((q.begin / kBlockTokens + 1) * kBlockTokens, queries.end);
        const std::optional<Pair> beyond = BeyondInRow(wanted, had, head, q, tokens);
        if (beyond.has_value()) return beyond;
      }
    }
  }
  return std::nullopt;
}

}  // namespace annulus
