#include "bench/kernels/listed.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "base/rng.h"

namespace annulus {
namespace {

constexpr uint64_t kSeed = 2026;

std::vector<int64_t> Drawn(Rng& rng, int64_t count, int64_t blocks) {
  std::vector<int64_t> drawn;
  while (std::ssize(drawn) < std::min(count, blocks)) {
    const auto block = static_cast<int64_t>(rng.Below(static_cast<uint64_t>(blocks)));
    if (std::find(drawn.begin(), drawn.end(), block) == drawn.end()) drawn.push_back(block);
  }
  std::sort(drawn.begin(), drawn.end());
  return drawn;
}

std::vector<int64_t> Shown(const Pattern& pattern, int head, int64_t q_block, int64_t tokens) {
  std::vector<TileRun> tiles;
  const int64_t begin = q_block * kBlockTokens;
  pattern.Row(head, {begin, std::min(begin + kBlockTokens, tokens)}, tokens, &tiles);
  std::vector<BlockRun> runs;
  for (const TileRun& tile : tiles) runs.push_back(tile.blocks);
  return BlockSet::FromRuns(runs).ToVector();
}

// Of blocks of 512 tokens, for each query and query head.
KeyListData ByQuery(int64_t count, int heads, TokenRange q) {
  Rng rng(kSeed);
  KeyListData data;
  data.rows = KeyListData::Rows::kToken;
  data.block_tokens = 512;
  data.heads = heads;
  data.begin = {0};
  data.q_begin = q.begin;
  for (int head = 0; head < heads; ++head) {
    for (int64_t at = q.begin; at < q.end; ++at) {
      const int64_t own = at / data.block_tokens;
      for (const int64_t block : Drawn(rng, count, own)) {
        data.keys.push_back(static_cast<int32_t>(block));
      }
      data.keys.push_back(static_cast<int32_t>(own));
      data.begin.push_back(static_cast<int64_t>(data.keys.size()));
    }
  }
  return data;
}

}  // namespace

Pattern BindListed(const Pattern& pattern, absl::string_view listed, int heads, TokenRange q) {
  const bool tenth = listed == "tenth";
  int64_t count = 0;
  if (absl::ConsumePrefix(&listed, "queries:") && absl::SimpleAtoi(listed, &count)) {
    const NamedList list{"x", *KeyList::Make(ByQuery(count, heads, q))};
    return *pattern.Bind({&list, 1}, heads);
  }
  const bool counted = absl::SimpleAtoi(listed, &count);
  const Pattern shown = *Pattern::Parse(tenth || counted ? "causal" : listed, pattern.kv_heads());
  Rng rng(kSeed);
  KeyListData data;
  data.rows = KeyListData::Rows::kBlock;
  data.heads = pattern.kv_heads();
  data.begin = {0};
  data.q_begin = q.begin / kBlockTokens * kBlockTokens;
  for (int head = 0; head < data.heads; ++head) {
    for (int64_t q_block = q.begin / kBlockTokens; q_block < BlocksOf(q.end); ++q_block) {
      const std::vector<int64_t> blocks =
          counted ? Drawn(rng, count, BlocksOf(q.end)) : Shown(shown, head, q_block, q.end);
      for (const int64_t block : blocks) {
        if (!tenth || rng.Below(10) == 0) data.keys.push_back(static_cast<int32_t>(block));
      }
      data.begin.push_back(static_cast<int64_t>(data.keys.size()));
    }
  }
  const NamedList list{"x", *KeyList::Make(std::move(data))};
  return *pattern.Bind({&list, 1}, heads);
}

}  // namespace annulus
