// s2r: S2-Attention's stride relative to the query, counted from either end of the window around it
// (its reference code's default where it is not causal).
#include <algorithm>
#include <array>

#include "attention/patterns/nodes.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

// With d = i − j of the blocks of query and key: seen iff max(0, d − left + 1) +
// max(0, −d − right + 1) ≡ 0 (mod stride). So a query sees from right − 1 blocks after it to
// left − 1 before it, and beyond either end every stride-th block.
class RelativeS2 final : public PatternNode {
 public:
  // left, right ≥ 1; block·(stride + left + right) ≤ kFar.
  RelativeS2(int64_t block, int64_t left, int64_t right, int64_t stride)
      : PatternNode({.groups = GroupsMax(block),
                     .ranges = 1,
                     .comb_lists = 1,
                     .combs = 2,
                     .tooth = block,
                     .period = block * stride},
                    HashNumbers('r', std::array{block, left, right, stride})),
        block_(block),
        left_(left),
        right_(right),
        stride_(stride) {}

  bool Allows(int64_t q, int64_t k) const override {
    const int64_t d = q / block_ - k / block_;
    const int64_t beyond =
        std::max<int64_t>(0, d - left_ + 1) + std::max<int64_t>(0, 1 - d - right_);
    return beyond % stride_ == 0;
  }
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    for (int64_t i = window.q_begin / block_; i * block_ < window.q_end; ++i) {
      Shape shape{i * block_, (i + 1) * block_, 0, 0, -kFar, kFar, {}};
      const int64_t first = (i - left_ + 1) * block_;
      const int64_t last = (i + right_ - 1) * block_;
      shape.k_begin = std::max<int64_t>(0, first);
      shape.k_end = last + block_;
      AppendShape(shape, window, out);
      shape.k_begin = 0;
      shape.k_end = first;
      shape.comb = {first, block_, block_ * stride_};
      AppendShape(shape, window, out);
      shape.k_begin = last + block_;
      shape.k_end = kFar;
      shape.comb.first = last;
      AppendShape(shape, window, out);
    }
  }
  absl::optional<int64_t> CountPairs(const ShapeWindow& window) const override {
    if ((window.q_end - window.q_begin) / block_ >= kCountedRunsMax) return absl::nullopt;
    return PairsOfDisjoint(*this, window);
  }
  // The residue that a query sees changes with the query.
  BlockSet Unneeded(int64_t, int64_t) const override { return {}; }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  std::array<int64_t, 4> Key() const { return {block_, left_, right_, stride_}; }

 private:
  const int64_t block_;
  const int64_t left_;
  const int64_t right_;
  const int64_t stride_;
};

absl::StatusOr<Rules> ReadRelativeS2(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(
      const auto values,
      reader.ReadArguments(
          {{"block", 1, true}, {"left", 1, true}, {"right", 1, true}, {"stride", 1, true}}));
  const int64_t block = values[0].number();
  for (size_t i = 1; i < values.size(); ++i) {
    if (values[i].number() <= kFar / 4 / block) continue;
    return reader.Refuse(values[i].at, "blocks of at most 2^58 tokens in all", "more");
  }
  const int64_t stride = values[3].number();
  if (stride == 1) return reader.SameForAll(MakeBand(-kFar, kFar));
  return reader.SameForAll(
      std::make_shared<RelativeS2>(block, values[1].number(), values[2].number(), stride));
}

}  // namespace

absl::Span<const PatternWord> RelativeS2Words() {
  static constexpr PatternWord kWords[] = {
      {"s2r", "s2r(block,left,right,stride)",
       "both ways: left - 1 blocks back to right - 1 ahead, and beyond them every stride-th block",
       "2407.17678, reference code", "s2r(4,2,2,3)", ReadRelativeS2},
  };
  return kWords;
}

}  // namespace annulus
