#include <algorithm>
#include <bit>
#include <set>
#include <vector>

#include "attention/pattern.h"
#include "base/check.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {
namespace {

// Longer texts say no more and may be slow: one row costs up to 2^20 terms.
constexpr size_t kTextBytesMax = 200;

// The pairs of one cell that exist in the context, by its mask.
int64_t PairsOf(const uint64_t mask[64], TokenRange q, int64_t k_begin, int64_t k_end) {
  const int64_t keys = k_end - k_begin;
  const uint64_t existing = keys == 64 ? ~uint64_t{0} : (uint64_t{1} << keys) - 1;
  int64_t pairs = 0;
  for (int64_t row = q.begin % 64; row <= (q.end - 1) % 64; ++row) {
    pairs += std::popcount(mask[row] & existing);
  }
  return pairs;
}

void CheckRow(const Pattern& pattern, int head, TokenRange q, int64_t kv_tokens) {
  std::vector<TileRun> tiles;
  pattern.Row(head, q, kv_tokens, &tiles);
  std::set<int64_t> seen, full;
  for (const TileRun& tile : tiles) {
    ANNULUS_CHECK(tile.blocks.count >= 1 && tile.blocks.step >= 1);
    for (int64_t i = 0; i < tile.blocks.count; ++i) {
      const int64_t block = tile.blocks.first + i * tile.blocks.step;
      ANNULUS_CHECK(seen.insert(block).second);
      if (tile.full) full.insert(block);
    }
  }
  const BlockSet evictable = pattern.Evictable(head, q.begin, kv_tokens);
  PairCount expected;
  for (int64_t block = 0; block < BlocksOf(kv_tokens); ++block) {
    const int64_t k_begin = 64 * block, k_end = std::min(kv_tokens, 64 * block + 64);
    uint64_t mask[64];
    pattern.CellMask(head, q.begin / 64, block, mask);
    const int64_t pairs = PairsOf(mask, q, k_begin, k_end);
    const int64_t existing = q.size() * (k_end - k_begin);
    ANNULUS_CHECK((pairs > 0) == (seen.count(block) == 1));
    ANNULUS_CHECK(pairs == existing || full.count(block) == 0);
    ANNULUS_CHECK(pairs == 0 || !evictable.Contains(block));
    const bool allowed = pattern.Allows(head, q.begin, k_begin);
    ANNULUS_CHECK(allowed == ((mask[q.begin % 64] & 1) != 0));
    expected.visited += pairs;
    if (pairs > 0) expected.work += existing;
  }
  const PairCount count = pattern.CountPairs(head, q, kv_tokens);
  ANNULUS_CHECK(count.visited == expected.visited && count.work == expected.work);
}

}  // namespace

bool TryPattern(Bytes input) {
  const int kv_heads = 1 + static_cast<int>(TakeByte(&input) % 8);
  const int64_t kv_tokens = 1 + 5 * int64_t{TakeByte(&input)};
  if (input.size() > kTextBytesMax) return false;
  const absl::StatusOr<Pattern> pattern = Pattern::Parse(Text(input), kv_heads);
  if (!pattern.ok()) {
    ANNULUS_CHECK(absl::IsInvalidArgument(pattern.status()));
    ANNULUS_CHECK(pattern.status().message().find('\n') == absl::string_view::npos);
    return false;
  }
  ANNULUS_CHECK(pattern->text() == Text(input));
  (void)pattern->CheckTokens(kv_tokens).ok();
  for (const int head : {0, kv_heads - 1}) {
    const int64_t last = (kv_tokens - 1) / 64 * 64;
    CheckRow(*pattern, head, {last, kv_tokens}, kv_tokens);
    CheckRow(*pattern, head, {last / 128 * 64, std::min(kv_tokens, last / 128 * 64 + 7)},
             kv_tokens);
    // Late rows of a long context. Where combs of odd periods meet, a row is painted block by
    // block: more tokens would take seconds and say no more.
    std::vector<TileRun> tiles;
    const int64_t far = (int64_t{1} << 24) + 77;
    pattern->Row(head, {far - 3, far}, far, &tiles);
  }
  return true;
}

}  // namespace annulus::fuzz
