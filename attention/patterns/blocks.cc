// band and slash: distances of blocks.
#include <algorithm>
#include <array>
#include <utility>

#include "attention/patterns/nodes.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

// Key block j is seen by query block i iff d_min ≤ i − j ≤ d_max: whole blocks, not causal.
class BlockDistances final : public PatternNode {
 public:
  // 0 ≤ d_min ≤ d_max, and (d_max + 1)·block ≤ kFar.
  BlockDistances(int64_t block, int64_t d_min, int64_t d_max)
      : PatternNode({.groups = GroupsMax(block), .ranges = 1, .keys = (d_max - d_min + 1) * block},
                    HashNumbers('a', std::array{block, d_min, d_max})),
        block_(block),
        d_min_(d_min),
        d_max_(d_max) {}

  bool Allows(int64_t q, int64_t k) const override {
    const int64_t d = FloorDiv(q, block_) - FloorDiv(k, block_);
    return d_min_ <= d && d <= d_max_;
  }
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    for (int64_t i = window.q_begin / block_; i * block_ < window.q_end; ++i) {
      const int64_t begin = std::max<int64_t>(0, i - d_max_);
      if (i < d_min_) continue;
      AppendShape({i * block_,
                   (i + 1) * block_,
                   begin * block_,
                   (i - d_min_ + 1) * block_,
                   -kFar,
                   kFar,
                   {}},
                  window, out);
    }
  }
  bool AppendWide(const ShapeWindow& window, ShapeList* out) const override {
    if (Groups(window) > kWideRunsMax) return false;
    AppendShapes(window, out);
    return true;
  }
  bool AppendBands(const ShapeWindow& window, std::vector<BlockBand>* out) const override {
    if (block_ != kBlockTokens) return PatternNode::AppendBands(window, out);
    BlockBand band = BandOf(window);
    band.d_min = std::min(d_min_, kFarBlocks);
    band.d_max = std::min(d_max_, kFarBlocks);
    out->push_back(band);
    return true;
  }
  absl::optional<int64_t> CountPairs(const ShapeWindow& window) const override {
    if (Groups(window) > kCountedRunsMax) return absl::nullopt;
    return PairsOfDisjoint(*this, window);
  }
  BlockSet Unneeded(int64_t next_q, int64_t blocks) const override {
    const int64_t oldest = std::max<int64_t>(0, next_q / block_ - d_max_) * block_;
    return BlockSet::Range(0, std::min(oldest / kBlockTokens, blocks));
  }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  std::array<int64_t, 3> Key() const { return {block_, d_min_, d_max_}; }

 private:
  int64_t Groups(const ShapeWindow& window) const {
    return (window.q_end - 1) / block_ - window.q_begin / block_ + 1;
  }

  const int64_t block_;
  const int64_t d_min_;
  const int64_t d_max_;
};

// Distances of single tokens are a band of tokens.
NodePtr MakeBlockDistances(int64_t block, int64_t d_min, int64_t d_max) {
  if (block == 1) return MakeBand(d_min, d_max);
  return std::make_shared<BlockDistances>(block, d_min, d_max);
}

// A number of blocks that fits the bounds of positions.
absl::Status CheckBlocks(const PatternReader& reader, const PatternReader::Value& blocks,
                         int64_t block) {
  if (blocks.number() < kFar / block) return absl::OkStatus();
  return reader.Refuse(blocks.at, "less than 2^60 tokens of blocks", "more");
}

absl::StatusOr<Rules> ReadBand(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values,
                           reader.ReadArguments({{"block", 1, true}, {"n", 1, true}}));
  const int64_t block = values[0].number();
  ANNULUS_RETURN_IF_ERROR(CheckBlocks(reader, values[1], block));
  return reader.SameForAll(
      MakeIntersection({MakeBlockDistances(block, 0, values[1].number() - 1), MakeBand(0, kFar)}));
}

absl::StatusOr<Rules> ReadSlash(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto first, reader.ReadFirstArguments({{"block", 1, true}}));
  const int64_t block = first[0].number();
  ANNULUS_ASSIGN_OR_RETURN(const auto distances, reader.ReadNumbers("a distance in blocks", 0));
  std::vector<NodePtr> nodes;
  ANNULUS_RETURN_IF_ERROR(reader.CountParts(first[0].at, distances.size()));
  for (const PatternReader::Value& distance : distances) {
    ANNULUS_RETURN_IF_ERROR(CheckBlocks(reader, distance, block));
    nodes.push_back(MakeBlockDistances(block, distance.number(), distance.number()));
  }
  return reader.SameForAll(MakeUnion(std::move(nodes)));
}

}  // namespace

absl::Span<const PatternWord> BlockWords() {
  static constexpr PatternWord kWords[] = {
      {"band", "band(block,n)", "causal; the last n blocks, the query's own included",
       "2406.14909 §4", "band(4,3) | keys(0,4)", ReadBand},
      {"slash", "slash(block,distance,distance,…)",
       "blocks that lie so many blocks before the query's; 0 is its own, whole", "2407.02490 §3",
       "slash(4,0,3,8) & causal", ReadSlash},
  };
  return kWords;
}

}  // namespace annulus
