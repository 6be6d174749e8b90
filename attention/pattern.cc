#include "attention/pattern.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/pattern_cells.h"
#include "attention/pattern_node.h"
#include "attention/pattern_parser.h"
#include "attention/pattern_rows.h"
#include "base/check.h"
#include "base/status.h"

namespace annulus {
namespace {

// The tokens of a run's blocks that lie within `keys`, of which only the first and the last block
// may hold fewer than 64.
int64_t TokensOf(const BlockRun& run, TokenRange keys) {
  const int64_t before = keys.begin - run.first * kBlockTokens;
  const int64_t after = (run.last() + 1) * kBlockTokens - keys.end;
  return run.count * kBlockTokens - std::max<int64_t>(0, before) - std::max<int64_t>(0, after);
}

// Σ over the rows of a stretch of the tokens of `keys` that are in blocks they see.
int64_t TokensOf(const RowStretch& stretch, TokenRange keys) {
  const BlockRun rows{stretch.q_begin, stretch.q_end - stretch.q_begin, 1};
  const int64_t first = keys.begin / kBlockTokens, end = BlocksOf(keys.end);
  const int64_t before = keys.begin - first * kBlockTokens;
  const int64_t after = end * kBlockTokens - keys.end;
  int64_t tokens = 0;
  for (const RowBand& band : stretch.bands) {
    tokens += kBlockTokens * BlocksSeen(band, rows, {first, end - first, 1});
    if (before > 0) tokens -= before * BlocksSeen(band, rows, {first, 1, 1});
    if (after > 0) tokens -= after * BlocksSeen(band, rows, {end - 1, 1, 1});
  }
  return tokens;
}

// fn(rows) for the parts of `q` that lie in one query block each.
template <typename Fn>
void ForEachQueryBlock(TokenRange q, Fn fn) {
  for (int64_t begin = q.begin; begin < q.end;) {
    const int64_t end = std::min(q.end, (begin / kBlockTokens + 1) * kBlockTokens);
    fn(TokenRange{begin, end});
    begin = end;
  }
}

// Whether all rows at once may be looked at: more shapes than that meet in too many ways, and no
// deadline is watched meanwhile.
bool HasFewShapes(const PatternNode& rule) {
  constexpr int64_t kShapesMax = 256;
  return rule.size().shapes() <= kShapesMax;
}

// How many bands are worth more than so many rows one by one.
int64_t BandsMax(int64_t q_blocks) {
  constexpr int64_t kAlways = 1024, kRowsOfOneBand = 64;
  return std::max(kAlways, q_blocks / kRowsOfOneBand);
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
                     TokenRange keys, const Stop& stop) {
  const CellPairs cells(shapes, q);
  int64_t pairs = 0;
  for (const TileRun& tile : tiles) {
    if (tile.full) {
      pairs += q.size() * TokensOf(tile.blocks, keys);
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
  pattern.id_ = NextId();
  pattern.text_ = std::string(text);
  pattern.kv_heads_ = kv_heads;
  pattern.SetRules(std::move(parsed.rules));
  pattern.docs_ = std::make_shared<const std::vector<DocsTotal>>(std::move(parsed.docs));
  pattern.list_names_ = std::move(parsed.list_names);
  pattern.selectors_ = std::move(parsed.selectors);
  return pattern;
}

int64_t Pattern::NextId() {
  static std::atomic<int64_t> last_id = 0;
  return ++last_id;
}

void Pattern::SetRules(std::vector<NodePtr> rules) {
  rules_ = std::move(rules);
  classes_.clear();
  std::multimap<uint64_t, int> classes;  // by the rule's hash, the first head of each
  for (int head = 0; head < kv_heads_; ++head) {
    NodePtr& rule = rules_[head];
    auto [same, end] = classes.equal_range(rule->hash());
    while (same != end && !rules_[same->second]->Equals(*rule)) ++same;
    if (same == end) same = classes.emplace(rule->hash(), head);
    classes_.push_back(same->second);
    rule = rules_[same->second];
  }
}

absl::Status Pattern::CheckTokens(int64_t kv_tokens) const {
  for (const DocsTotal& docs : *docs_) {
    if (docs.tokens != kv_tokens) {
      return absl::InvalidArgumentError(absl::StrCat(
          "pattern: at ", docs.position, ": documents of ", docs.tokens,
          " tokens in all; expected ", kv_tokens, " tokens, as many as the context has"));
    }
  }
  return absl::OkStatus();
}

Pattern Pattern::KeysFrom(int64_t first) const {
  Pattern pattern = *this;
  pattern.first_key_ = first;
  if (by_query_head()) {
    std::vector<Pattern> members = *members_;
    for (Pattern& member : members) member.first_key_ = first;
    pattern.members_ = std::make_shared<const std::vector<Pattern>>(std::move(members));
  }
  return pattern;
}

bool Pattern::Allows(int kv_head, int64_t q, int64_t k) const {
  return k >= first_key_ && rules_[kv_head]->Allows(q, k);
}

void Pattern::Row(int kv_head, TokenRange q, int64_t kv_tokens, std::vector<TileRun>* out) const {
  ANNULUS_CHECK(0 <= q.begin && q.begin < q.end &&
                q.begin / kBlockTokens == (q.end - 1) / kBlockTokens);
  rules_[kv_head]->Row({q.begin, q.end, first_key_, kv_tokens}, out);
}

bool Pattern::Stretches(int kv_head, TokenRange q, int64_t kv_tokens,
                        std::vector<RowStretch>* out) const {
  out->clear();
  if (!HasFewShapes(*rules_[kv_head])) return false;
  const ShapeWindow whole{CeilDiv(q.begin, kBlockTokens) * kBlockTokens,
                          q.end / kBlockTokens * kBlockTokens, first_key_, kv_tokens};
  std::vector<BlockBand> bands;
  if (whole.q_begin < whole.q_end && first_key_ < kv_tokens &&
      !rules_[kv_head]->AppendBands(whole, &bands)) {
    return false;
  }
  if (!MakeStretches(std::move(bands), BandsMax(BlocksOf(q.size())), out)) return false;
  // Query blocks of which some rows are no queries are stretches of their own.
  const auto add_row = [&](TokenRange rows, std::vector<RowStretch>::iterator at) {
    std::vector<TileRun> tiles;
    Row(kv_head, rows, kv_tokens, &tiles);
    RowStretch stretch{rows.begin / kBlockTokens, rows.begin / kBlockTokens + 1, {}};
    for (const TileRun& tile : tiles) {
      const BlockRun& run = tile.blocks;
      stretch.bands.push_back({run.first, run.last() + 1, false, false, run.first, run.step});
    }
    if (!stretch.bands.empty()) out->insert(at, std::move(stretch));
  };
  if (q.begin < whole.q_begin) {
    add_row({q.begin, std::min(q.end, whole.q_begin)}, out->begin());
  }
  if (whole.q_begin <= whole.q_end && whole.q_end < q.end) {
    add_row({whole.q_end, q.end}, out->end());
  }
  return true;
}

void Pattern::CellMask(int kv_head, int64_t q_block, int64_t k_block, uint64_t mask[64]) const {
  CellMask(kv_head, {q_block * kBlockTokens, (q_block + 1) * kBlockTokens}, k_block, mask);
}

void Pattern::CellMask(int kv_head, TokenRange q, int64_t k_block, uint64_t mask[64]) const {
  const int64_t k = k_block * kBlockTokens;
  rules_[kv_head]->Mask({q.begin, q.end, std::max(k, first_key_), k + kBlockTokens},
                        q.begin / kBlockTokens, k_block, mask);
}

PairCount Pattern::CountPairs(int kv_head, TokenRange q, int64_t kv_tokens,
                              const Stop& stop) const {
  PairCount count;
  const TokenRange keys{first_key_, kv_tokens};
  if (keys.size() <= 0 || q.size() <= 0) return count;
  absl::optional<int64_t> visited;
  if (HasFewShapes(*rules_[kv_head])) {
    visited = rules_[kv_head]->CountPairs({q.begin, q.end, keys.begin, keys.end});
  }
  std::vector<RowStretch> stretches;
  const bool banded = Stretches(kv_head, q, kv_tokens, &stretches);
  for (size_t i = 0; banded && i < stretches.size(); ++i) {
    const RowStretch& stretch = stretches[i];
    const int64_t rows = std::min(kBlockTokens * stretch.q_end, q.end) -
                         std::max(kBlockTokens * stretch.q_begin, q.begin);
    count.work += rows / (stretch.q_end - stretch.q_begin) * TokensOf(stretch, keys);
  }
  if (visited.has_value()) count.visited = *visited;
  if (visited.has_value() && banded) return count;
  const bool shaped = rules_[kv_head]->shaped();
  ShapeList shapes;
  std::vector<TileRun> tiles;
  ForEachQueryBlock(q, [&](TokenRange rows) {
    if (stop.stopped()) return;
    const ShapeWindow window{rows.begin, rows.end, keys.begin, keys.end};
    shapes.clear();
    if (shaped) {
      rules_[kv_head]->AppendShapes(window, &shapes);
      TilesOfUnion(&shapes, rows, kv_tokens, &tiles);
    } else {
      rules_[kv_head]->Row(window, &tiles);
    }
    for (const TileRun& tile : tiles) {
      if (!banded) count.work += rows.size() * TokensOf(tile.blocks, keys);
    }
    if (visited.has_value()) return;
    if (!shaped) {
      count.visited += PairsOfCells(*rules_[kv_head], tiles, window);
      return;
    }
    const absl::optional<int64_t> pairs = PairsOfUnion(shapes);
    count.visited += pairs.has_value() ? *pairs : PairsOfTiles(shapes, tiles, rows, keys, stop);
  });
  return count;
}

int Pattern::HeadClass(int kv_head) const {
  return classes_[kv_head];
}

BlockSet Pattern::Evictable(int kv_head, int64_t next_q, int64_t kv_tokens) const {
  return rules_[kv_head]->Unneeded(next_q, BlocksOf(kv_tokens));
}

}  // namespace annulus
