#include "attention/pattern_node.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "attention/pattern_rows.h"

namespace annulus {
namespace {

// Pattern blocks of `block` tokens that the rows of one query block can lie in.
int64_t GroupsMax(int64_t block) {
  return (kBlockTokens - 2) / block + 2;
}

// All cells of a window on and below the diagonal.
BlockBand BandOf(const ShapeWindow& window) {
  return {.q_begin = window.q_begin / kBlockTokens,
          .q_end = BlocksOf(window.q_end),
          .k_begin = window.k_begin / kBlockTokens,
          .k_end = BlocksOf(window.k_end),
          .d_min = 0,
          .d_max = kFarBlocks};
}

// Equality of nodes of one kind is that of their numbers.
template <typename Node>
bool SameAs(const Node& node, const PatternNode& other) {
  const Node* same = dynamic_cast<const Node*>(&other);
  return same == &node || (same != nullptr && node.Key() == same->Key());
}

class Band final : public PatternNode {
 public:
  Band(int64_t d_min, int64_t d_max)
      : PatternNode({.ranges = 1},
                    HashNumbers('b', std::array{std::max(d_min, -kFar), std::min(d_max, kFar)})),
        d_min_(std::max(d_min, -kFar)),
        d_max_(std::min(d_max, kFar)) {}

  bool Allows(int64_t q, int64_t k) const override { return d_min_ <= q - k && q - k <= d_max_; }
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    AppendShape({window.q_begin, window.q_end, 0, kFar, d_min_, d_max_, {}}, window, out);
  }
  bool AppendWide(const ShapeWindow& window, ShapeList* out) const override {
    AppendShapes(window, out);
    return true;
  }
  BlockSet Unneeded(int64_t next_q, int64_t blocks) const override {
    const int64_t oldest = std::max<int64_t>(0, next_q - d_max_);
    return BlockSet::Range(0, std::min(oldest / kBlockTokens, blocks));
  }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  std::pair<int64_t, int64_t> Key() const { return {d_min_, d_max_}; }

 private:
  const int64_t d_min_;
  const int64_t d_max_;
};

class Sink final : public PatternNode {
 public:
  explicit Sink(int64_t tokens)
      : PatternNode({.ranges = 1}, HashNumbers('k', std::array{std::min(tokens, kFar)})),
        tokens_(std::min(tokens, kFar)) {}

  bool Allows(int64_t, int64_t k) const override { return k < tokens_; }
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    AppendShape({window.q_begin, window.q_end, 0, tokens_, -kFar, kFar, {}}, window, out);
  }
  bool AppendWide(const ShapeWindow& window, ShapeList* out) const override {
    AppendShapes(window, out);
    return true;
  }
  BlockSet Unneeded(int64_t, int64_t blocks) const override {
    const int64_t first = std::min(BlocksOf(tokens_), blocks);
    return BlockSet::Range(first, blocks - first);
  }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  int64_t Key() const { return tokens_; }

 private:
  const int64_t tokens_;
};

class Docs final : public PatternNode {
 public:
  explicit Docs(const std::vector<int64_t>& lengths)
      : PatternNode({.groups = GroupsOf(lengths), .ranges = 1}, HashNumbers('d', lengths)) {
    starts_.reserve(lengths.size());
    int64_t start = 0;
    for (const int64_t length : lengths) {
      starts_.push_back(start);
      start += length;
    }
  }

  bool Allows(int64_t q, int64_t k) const override { return DocOf(q) == DocOf(k); }
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    for (size_t doc = DocOf(window.q_begin); doc < starts_.size(); ++doc) {
      const int64_t begin = starts_[doc];
      const int64_t end = doc + 1 < starts_.size() ? starts_[doc + 1] : kFar;
      if (begin >= window.q_end) break;
      AppendShape({begin, end, begin, end, -kFar, kFar, {}}, window, out);
    }
  }
  bool AppendWide(const ShapeWindow& window, ShapeList* out) const override {
    AppendShapes(window, out);
    return true;
  }
  BlockSet Unneeded(int64_t next_q, int64_t blocks) const override {
    return BlockSet::Range(0, std::min(starts_[DocOf(next_q)] / kBlockTokens, blocks));
  }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  const std::vector<int64_t>& Key() const { return starts_; }

 private:
  static int64_t GroupsOf(const std::vector<int64_t>& lengths) {
    const int64_t shortest = *std::min_element(lengths.begin(), lengths.end());
    return std::min(static_cast<int64_t>(lengths.size()), kBlockTokens / shortest + 2);
  }
  size_t DocOf(int64_t position) const {
    return std::upper_bound(starts_.begin(), starts_.end(), position) - starts_.begin() - 1;
  }

  std::vector<int64_t> starts_;
};

class S2 final : public PatternNode {
 public:
  S2(int64_t block, int64_t local, int64_t stride, int64_t residue)
      : PatternNode({.ranges = GroupsMax(block),
                     .comb_lists = 1,
                     .combs = 1,
                     .tooth = block,
                     .period = block * stride},
                    HashNumbers('s', std::array{block, local, stride, residue})),
        block_(block),
        local_(local),
        stride_(stride),
        residue_(residue) {}

  bool Allows(int64_t q, int64_t k) const override {
    const int64_t i = q / block_;
    const int64_t j = k / block_;
    return k <= q && (i - j < local_ || OnStride(j));
  }

  // Rows of a later pattern block see their window begin one pattern block later. What all rows
  // see is one shape; the few blocks that only the earlier rows have in their window are one each;
  // what lies before every window is the stride's comb. The shapes are disjoint.
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    const int64_t first_group = window.q_begin / block_;
    const int64_t last_group = (window.q_end - 1) / block_;
    Shape shape{window.q_begin, window.q_end, WindowStart(last_group), kFar, 0, kFar, {}};
    AppendShape(shape, window, out);
    // From the first group whose window leaves a block behind: blocks that the window's keys meet.
    const int64_t first_left = std::max<int64_t>(0, first_group - (local_ - 1));
    const int64_t first = std::max(first_left, window.k_begin / block_);
    const int64_t end = std::min(last_group - (local_ - 1), (window.k_end - 1) / block_ + 1);
    for (int64_t j = first; j < end; ++j) {
      const int64_t i = j + (local_ - 1);
      shape.k_begin = j * block_;
      shape.k_end = shape.k_begin + block_;
      shape.q_end = OnStride(j) ? window.q_end : (i + 1) * block_;
      AppendShape(shape, window, out);
    }
    shape.q_end = window.q_end;
    shape.k_begin = 0;
    shape.k_end = WindowStart(first_group);
    shape.comb = {residue_ * block_, block_, block_ * stride_};
    AppendShape(shape, window, out);
  }

  // Window and comb are bands where a pattern block is a block: a cell is then seen by all of its
  // rows or, on the diagonal, by its last.
  bool AppendBands(const ShapeWindow& window, std::vector<BlockBand>* out) const override {
    if (block_ != kBlockTokens) return false;
    BlockBand band = BandOf(window);
    band.d_max = std::min(local_, kFarBlocks) - 1;
    out->push_back(band);
    band.d_min = band.d_max + 1;
    band.d_max = kFarBlocks;
    band.first = residue_;
    band.step = stride_;
    out->push_back(band);
    return true;
  }

  // All rows of a pattern block have the same window begin and the same comb before it.
  absl::optional<int64_t> CountPairs(const ShapeWindow& window) const override {
    if (block_ < kBlockTokens) return absl::nullopt;
    const Comb comb{residue_ * block_, block_, block_ * stride_};
    int64_t pairs = 0;
    for (int64_t i = window.q_begin / block_; i * block_ < window.q_end; ++i) {
      Shape shape{i * block_, (i + 1) * block_, WindowStart(i), kFar, 0, kFar, {}};
      ShapeList local;
      AppendShape(shape, window, &local);
      if (!local.empty()) pairs += PairsOf(local[0]);
      const int64_t rows =
          std::min(window.q_end, shape.q_end) - std::max(window.q_begin, shape.q_begin);
      pairs += rows * comb.CountIn(window.k_begin, std::min(window.k_end, WindowStart(i)));
    }
    return pairs;
  }

  // The last query sees all of the comb before it, and windows follow each other without a gap.
  bool AppendSeen(const ShapeWindow& window, ShapeList* out) const override {
    const ShapeWindow before{window.q_end - 1, window.q_end, window.k_begin, window.k_end};
    Shape shape{
        window.q_begin, window.q_end, WindowStart(window.q_begin / block_), kFar, 0, kFar, {}};
    AppendShape(shape, window, out);
    shape.k_begin = 0;
    shape.comb = {residue_ * block_, block_, block_ * stride_};
    AppendShape(shape, before, out);
    return true;
  }

  // §3.3 of the paper: what has left the local window and is off the stride never comes back.
  BlockSet Unneeded(int64_t next_q, int64_t blocks) const override {
    const int64_t left = std::min(WindowStart(next_q / block_), blocks * kBlockTokens);
    const int64_t end = left / kBlockTokens * kBlockTokens;
    if (end == 0) return {};
    const Shape kept{0, 1, 0, end, -kFar, kFar, {residue_ * block_, block_, block_ * stride_}};
    std::vector<TileRun> tiles;
    AppendTiles(kept, {0, 1}, end, &tiles);
    std::vector<BlockRun> runs;
    for (const TileRun& tile : tiles) runs.push_back(tile.blocks);
    return BlockSet::Range(0, end / kBlockTokens).Subtract(BlockSet::FromRuns(std::move(runs)));
  }

  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  std::array<int64_t, 4> Key() const { return {block_, local_, stride_, residue_}; }

 private:
  bool OnStride(int64_t j) const { return j % stride_ == residue_; }
  int64_t WindowStart(int64_t i) const { return i < local_ ? 0 : (i - (local_ - 1)) * block_; }

  const int64_t block_;
  const int64_t local_;
  const int64_t stride_;
  const int64_t residue_;
};

class Power final : public PatternNode {
 public:
  Power(int64_t block, int64_t window, int64_t sink)
      : PatternNode({.groups = GroupsMax(block), .ranges = 3 + kSlashesMax},
                    HashNumbers('p', std::array{block, std::max<int64_t>(window, 1), sink})),
        block_(block),
        window_(std::max<int64_t>(window, 1)),
        sink_(sink),
        sink_end_(
            static_cast<int64_t>(std::min<__int128>(static_cast<__int128>(sink) * block, kFar))) {}

  bool Allows(int64_t q, int64_t k) const override {
    const int64_t j = k / block_;
    const int64_t d = q / block_ - j;
    return k <= q && (d < window_ || (d & (d - 1)) == 0 || j < sink_);
  }

  // The sink and the part of the window that all rows see are one shape each; the rest is by rows
  // of one pattern block: what is left of their window, and one block for each power of two.
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    const int64_t first_group = window.q_begin / block_;
    const int64_t last_group = (window.q_end - 1) / block_;
    AppendShape({window.q_begin, window.q_end, 0, sink_end_, 0, kFar, {}}, window, out);
    const int64_t shared = std::max(sink_end_, WindowStart(last_group));
    AppendShape({window.q_begin, window.q_end, shared, kFar, 0, kFar, {}}, window, out);
    for (int64_t i = first_group; i <= last_group; ++i) {
      Shape shape{i * block_, (i + 1) * block_, 0, 0, 0, kFar, {}};
      shape.k_begin = std::max(sink_end_, WindowStart(i));
      shape.k_end = shared;
      AppendShape(shape, window, out);
      for (int64_t d = FirstSlash(); d <= i - sink_; d *= 2) {
        shape.k_begin = (i - d) * block_;
        shape.k_end = shape.k_begin + block_;
        AppendShape(shape, window, out);
      }
    }
  }

  // As S2's; a power of two ahead is a band of one block's distance.
  bool AppendBands(const ShapeWindow& window, std::vector<BlockBand>* out) const override {
    if (block_ != kBlockTokens) return false;
    BlockBand band = BandOf(window);
    band.k_end = std::min(band.k_end, sink_end_ / kBlockTokens);
    if (band.k_begin < band.k_end) out->push_back(band);
    band.k_end = BlocksOf(window.k_end);
    band.d_max = std::min(window_, kFarBlocks) - 1;
    out->push_back(band);
    for (int64_t d = FirstSlash(); d < band.q_end; d *= 2) {
      band.d_min = band.d_max = d;
      out->push_back(band);
    }
    return true;
  }

  // A key's distance always has a greater power of two ahead: every key may be needed again.
  BlockSet Unneeded(int64_t, int64_t) const override { return {}; }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  std::array<int64_t, 3> Key() const { return {block_, window_, sink_}; }

 private:
  static constexpr int64_t kSlashesMax = 40;  // contexts end below 2⁴⁰ blocks

  int64_t WindowStart(int64_t i) const { return i < window_ ? 0 : (i - (window_ - 1)) * block_; }
  int64_t FirstSlash() const {
    return window_ > kFar ? kFar : static_cast<int64_t>(std::bit_ceil<uint64_t>(window_));
  }

  const int64_t block_;
  const int64_t window_;
  const int64_t sink_;
  const int64_t sink_end_;
};

}  // namespace

NodePtr MakeBand(int64_t d_min, int64_t d_max) {
  return std::make_shared<Band>(d_min, d_max);
}

NodePtr MakeSink(int64_t tokens) {
  return std::make_shared<Sink>(tokens);
}

NodePtr MakeDocs(const std::vector<int64_t>& lengths) {
  return std::make_shared<Docs>(lengths);
}

NodePtr MakeS2(int64_t block, int64_t local, int64_t stride, int64_t residue) {
  // Every block is on a stride of 1: that is causal, and without a comb.
  if (stride == 1) return MakeBand(0, kFar);
  return std::make_shared<S2>(block, local, stride, residue);
}

NodePtr MakePower(int64_t block, int64_t window, int64_t sink) {
  return std::make_shared<Power>(block, window, sink);
}

}  // namespace annulus
