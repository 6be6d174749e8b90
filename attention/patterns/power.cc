// power: PowerAttention (arXiv 2503.03588 §3).
#include <algorithm>
#include <array>
#include <bit>
#include <memory>

#include "attention/patterns/nodes.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

// Causal, and key block j seen by query block i iff, with d = i − j, d < window or d & (d − 1) = 0
// or j < sink.
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

absl::StatusOr<Rules> ReadPower(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(
      const auto values,
      reader.ReadArguments({{"block", 1, true}, {"window", 0, true}, {"sink", 0, true}}));
  return reader.SameForAll(
      std::make_shared<Power>(values[0].number(), values[1].number(), values[2].number()));
}

}  // namespace

absl::Span<const PatternWord> PowerWords() {
  static constexpr PatternWord kWords[] = {
      {"power", "power(block,window,sink)",
       "causal; the last `window` blocks, the first `sink`, and those a power of two of blocks "
       "back",
       "2503.03588 §3", "power(4,2,1)", ReadPower},
  };
  return kWords;
}

}  // namespace annulus
