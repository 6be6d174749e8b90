// disk: CLEAR's circular neighbourhoods of an image (arXiv 2412.16112).
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "attention/patterns/grid.h"
#include "attention/patterns/nodes.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int64_t kRadiusMax = int64_t{1} << 20;

// The first `text` tokens see all and are seen by all; after them lies an H×W grid, of which a
// query sees the places nearer than the radius: Δy² + Δx² < r².
class Disk final : public PatternNode {
 public:
  Disk(const Grid& grid, int64_t radius, int64_t text)
      : PatternNode({.groups = std::min(GroupsMax(grid.row_tokens()) + 2, kBlockTokens),
                     .ranges = std::min(2 * radius - 1, grid.extents[1]) + 1,
                     .keys = text > 0 ? kFar : (2 * radius - 1) * (2 * radius - 1)},
                    HashNumbers('o', std::array{grid.extents[1], grid.extents[2], radius, text})),
        grid_(grid),
        radius_(radius),
        text_(text),
        end_(text + grid.tokens()) {}

  bool Allows(int64_t q, int64_t k) const override {
    if (std::max(q, k) >= end_) return false;
    if (q < text_ || k < text_) return true;
    const Grid::Place a = grid_.PlaceOf(q - text_), b = grid_.PlaceOf(k - text_);
    const int64_t dy = a[1] - b[1], dx = a[2] - b[2];
    return dy * dy + dx * dx < radius_ * radius_;
  }

  // The queries of a row of the grid see, of each row near enough, a band of distances.
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    AppendShape({0, text_, 0, end_, -kFar, kFar, {}}, window, out);
    AppendShape({text_, end_, 0, text_, -kFar, kFar, {}}, window, out);
    const int64_t width = grid_.row_tokens();
    const int64_t end = std::min(window.q_end, end_);
    for (int64_t q = std::max(window.q_begin, text_), next = 0; q < end; q = next) {
      const int64_t y = (q - text_) / width;
      next = text_ + (y + 1) * width;
      const int64_t first = std::max<int64_t>(0, y - radius_ + 1);
      const int64_t last = std::min(grid_.extents[1] - 1, y + radius_ - 1);
      for (int64_t row = first; row <= last; ++row) {
        const int64_t begin = text_ + row * width;
        const int64_t across = (y - row) * width, reach = Reach(y - row);
        AppendShape({q, next, begin, begin + width, across - reach, across + reach, {}}, window,
                    out);
      }
    }
  }
  BlockSet Unneeded(int64_t next_q, int64_t blocks) const override {
    if (next_q >= end_) return BlockSet::Range(0, blocks);
    if (next_q < text_) return {};
    const int64_t row = std::max<int64_t>(0, (next_q - text_) / grid_.row_tokens() - radius_ + 1);
    const int64_t begin = BlocksOf(text_);
    const int64_t end = std::min((text_ + row * grid_.row_tokens()) / kBlockTokens, blocks);
    return begin < end ? BlockSet::Range(begin, end - begin) : BlockSet();
  }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  std::array<int64_t, 4> Key() const {
    return {grid_.extents[1], grid_.extents[2], radius_, text_};
  }

 private:
  // The greatest Δx at this Δy.
  int64_t Reach(int64_t dy) const {
    const int64_t square = radius_ * radius_ - dy * dy - 1;
    auto root = static_cast<int64_t>(std::sqrt(static_cast<double>(square)));
    while (root * root > square) --root;
    while ((root + 1) * (root + 1) <= square) ++root;
    return root;
  }

  const Grid grid_;
  const int64_t radius_;
  const int64_t text_;
  const int64_t end_;
};

absl::StatusOr<Rules> ReadDisk(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(
      const auto values,
      reader.ReadArguments({{"extents", 1, true, 2}, {"radius", 1, true}, {"text", 0, false}}));
  ANNULUS_ASSIGN_OR_RETURN(const Grid grid, ReadGrid(reader, values[0], 2));
  if (values[1].number() > kRadiusMax) {
    return reader.Refuse(values[1].at, "a radius of at most 2^20",
                         absl::StrCat(values[1].number()));
  }
  const int64_t text = std::min(values[2].number(), kFar / 2);
  return reader.SameForAll(std::make_shared<Disk>(grid, values[1].number(), text));
}

}  // namespace

absl::Span<const PatternWord> DiskWords() {
  static constexpr PatternWord kWords[] = {
      {"disk", "disk(HxW,radius[,text=0])",
       "an image after `text` tokens: places nearer than the radius; text sees and is seen by all",
       "2412.16112", "disk(7x8,3,text=8)", ReadDisk},
  };
  return kWords;
}

}  // namespace annulus
