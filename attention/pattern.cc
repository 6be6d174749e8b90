#include "attention/pattern.h"

#include <algorithm>
#include <bit>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/pattern_node.h"
#include "attention/pattern_parser.h"
#include "attention/pattern_rows.h"
#include "base/check.h"
#include "base/status.h"

namespace annulus {
namespace {

int64_t TokensOf(const BlockRun& run, int64_t kv_tokens) {
  const bool has_short_block = run.last() * kBlockTokens + kBlockTokens > kv_tokens;
  return run.count * kBlockTokens -
         (has_short_block ? run.last() * kBlockTokens + kBlockTokens - kv_tokens : 0);
}

// Pairs of cells, for shapes that overlap in too many ways. `shapes` ascend by their keys.
class CellPairs {
 public:
  CellPairs(const ShapeList& shapes, TokenRange q) : q_block_(q.begin / kBlockTokens) {
    for (const Shape& shape : shapes) {
      (shape.k_end - shape.k_begin > kNarrow ? wide_ : narrow_).push_back(shape);
    }
  }

  int64_t Count(int64_t k_block) const {
    uint64_t mask[kBlockTokens] = {};
    for (const Shape& shape : wide_) AddToMask(shape, q_block_, k_block, mask);
    const int64_t begin = k_block * kBlockTokens;
    const auto below = [](const Shape& shape, int64_t key) { return shape.k_begin < key; };
    auto at = std::lower_bound(narrow_.begin(), narrow_.end(), begin - kNarrow, below);
    for (; at != narrow_.end() && at->k_begin < begin + kBlockTokens; ++at) {
      AddToMask(*at, q_block_, k_block, mask);
    }
    int64_t pairs = 0;
    for (const uint64_t row : mask) pairs += std::popcount(row);
    return pairs;
  }

 private:
  static constexpr int64_t kNarrow = 4 * kBlockTokens;  // keys of a shape that is looked up

  const int64_t q_block_;
  std::vector<Shape> wide_;
  std::vector<Shape> narrow_;
};

int64_t PairsOfTiles(const ShapeList& shapes, const std::vector<TileRun>& tiles, TokenRange q,
                     int64_t kv_tokens, const Stop& stop) {
  const CellPairs cells(shapes, q);
  int64_t pairs = 0;
  for (const TileRun& tile : tiles) {
    if (tile.full) {
      pairs += q.size() * TokensOf(tile.blocks, kv_tokens);
      continue;
    }
    for (int64_t i = 0; i < tile.blocks.count; ++i) {
      if (stop.stopped()) return pairs;
      pairs += cells.Count(tile.blocks.first + i * tile.blocks.step);
    }
  }
  return pairs;
}

}  // namespace

absl::StatusOr<Pattern> Pattern::Parse(absl::string_view text, int kv_heads) {
  ANNULUS_ASSIGN_OR_RETURN(ParsedPattern parsed, ParsePattern(text, kv_heads));
  Pattern pattern;
  pattern.text_ = std::string(text);
  pattern.kv_heads_ = kv_heads;
  pattern.rules_ = std::move(parsed.rules);
  pattern.docs_ = std::make_shared<const std::vector<DocsTotal>>(std::move(parsed.docs));
  std::multimap<uint64_t, int> classes;  // by the rule's hash, the first head of each
  for (int head = 0; head < kv_heads; ++head) {
    NodePtr& rule = pattern.rules_[head];
    auto [same, end] = classes.equal_range(rule->hash());
    while (same != end && !pattern.rules_[same->second]->Equals(*rule)) ++same;
    if (same == end) same = classes.emplace(rule->hash(), head);
    pattern.classes_.push_back(same->second);
    rule = pattern.rules_[same->second];
  }
  return pattern;
}

absl::Status Pattern::CheckTokens(int64_t kv_tokens, bool may_grow) const {
  for (const DocsTotal& docs : *docs_) {
    if (may_grow && docs.last_start > kv_tokens) {
      return absl::InvalidArgumentError(absl::StrCat(
          "pattern: at ", docs.position, ": expected the last document to start within the ",
          kv_tokens, " tokens of the context, found its start at ", docs.last_start));
    }
    if (!may_grow && docs.tokens != kv_tokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("pattern: at ", docs.position, ": expected documents of ", kv_tokens,
                       " tokens in all, as many as the context has, found ", docs.tokens));
    }
  }
  return absl::OkStatus();
}

bool Pattern::Allows(int kv_head, int64_t q, int64_t k) const {
  return rules_[kv_head]->Allows(q, k);
}

void Pattern::Row(int kv_head, TokenRange q, int64_t kv_tokens, std::vector<TileRun>* out) const {
  ANNULUS_CHECK(0 <= q.begin && q.begin < q.end &&
                q.begin / kBlockTokens == (q.end - 1) / kBlockTokens);
  ShapeList shapes;
  rules_[kv_head]->AppendShapes({q.begin, q.end, 0, kv_tokens}, &shapes);
  TilesOfUnion(&shapes, q, kv_tokens, out);
}

void Pattern::CellMask(int kv_head, int64_t q_block, int64_t k_block, uint64_t mask[64]) const {
  std::fill(mask, mask + kBlockTokens, 0);
  const int64_t q = q_block * kBlockTokens;
  const int64_t k = k_block * kBlockTokens;
  ShapeList shapes;
  rules_[kv_head]->AppendShapes({q, q + kBlockTokens, k, k + kBlockTokens}, &shapes);
  for (const Shape& shape : shapes) AddToMask(shape, q_block, k_block, mask);
}

PairCount Pattern::CountPairs(int kv_head, TokenRange q, int64_t kv_tokens,
                              const Stop& stop) const {
  PairCount count;
  ShapeList shapes;
  std::vector<TileRun> tiles;
  for (int64_t begin = q.begin; begin < q.end && !stop.stopped();) {
    const int64_t end = std::min(q.end, (begin / kBlockTokens + 1) * kBlockTokens);
    const TokenRange rows{begin, end};
    shapes.clear();
    rules_[kv_head]->AppendShapes({begin, end, 0, kv_tokens}, &shapes);
    TilesOfUnion(&shapes, rows, kv_tokens, &tiles);
    for (const TileRun& tile : tiles) {
      count.work += rows.size() * TokensOf(tile.blocks, kv_tokens);
    }
    const absl::optional<int64_t> pairs = PairsOfUnion(shapes);
    count.visited +=
        pairs.has_value() ? *pairs : PairsOfTiles(shapes, tiles, rows, kv_tokens, stop);
    begin = end;
  }
  return count;
}

int Pattern::HeadClass(int kv_head) const {
  return classes_[kv_head];
}

BlockSet Pattern::Evictable(int kv_head, int64_t next_q, int64_t kv_tokens) const {
  return rules_[kv_head]->Unneeded(next_q, BlocksOf(kv_tokens));
}

}  // namespace annulus
