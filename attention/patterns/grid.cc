// grid and cross: MaxViT's grid and CSWin's stripes.
#include "attention/patterns/grid.h"

#include <algorithm>
#include <array>
#include <memory>

#include "absl/strings/str_cat.h"
#include "attention/patterns/nodes.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int64_t kGridTokensMax = int64_t{1} << 40;

// Of an H×W grid: key (y', x') is seen by query (y, x) iff y' ≡ y (mod y_step) and x' ≡ x
// (mod x_step).
class Lattice final : public PatternNode {
 public:
  // The steps divide the extents.
  Lattice(const Grid& grid, int64_t y_step, int64_t x_step)
      : PatternNode(SizeOf(grid, y_step, x_step),
                    HashNumbers('g', std::array{grid.extents[1], grid.extents[2], y_step, x_step})),
        grid_(grid),
        y_step_(y_step),
        x_step_(x_step) {}

  bool Allows(int64_t q, int64_t k) const override {
    if (std::max(q, k) >= grid_.tokens()) return false;
    const Grid::Place a = grid_.PlaceOf(q), b = grid_.PlaceOf(k);
    return a[1] % y_step_ == b[1] % y_step_ && a[2] % x_step_ == b[2] % x_step_;
  }
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    const int64_t width = grid_.row_tokens();
    const int64_t end = std::min(window.q_end, grid_.tokens());
    for (int64_t q = window.q_begin, next = 0; q < end; q = next) {
      const Grid::Place place = grid_.PlaceOf(q);
      next = x_step_ == 1 ? (q / width + 1) * width : q + 1;
      for (int64_t y = place[1] % y_step_; y < grid_.extents[1]; y += y_step_) {
        Shape shape{q, next, y * width, (y + 1) * width, -kFar, kFar, {}};
        if (x_step_ > 1) shape.comb = {y * width + place[2] % x_step_, 1, x_step_};
        AppendShape(shape, window, out);
      }
    }
  }
  // A later query may see any row of the grid again.
  BlockSet Unneeded(int64_t, int64_t) const override { return {}; }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  std::array<int64_t, 4> Key() const {
    return {grid_.extents[1], grid_.extents[2], y_step_, x_step_};
  }

 private:
  static Size SizeOf(const Grid& grid, int64_t y_step, int64_t x_step) {
    const int64_t rows = grid.extents[1] / y_step, columns = grid.extents[2] / x_step;
    Size size{.groups = x_step == 1 ? GroupsMax(grid.extents[2]) : kBlockTokens,
              .keys = rows * columns};
    if (x_step == 1) {
      size.ranges = rows;
    } else {
      size.comb_lists = 1;
      size.combs = rows;
      size.tooth = 1;
      size.period = x_step;
    }
    return size;
  }

  const Grid grid_;
  const int64_t y_step_;
  const int64_t x_step_;
};

// Query and key in the same stripe of `width` columns of an H×W grid.
class Columns final : public PatternNode {
 public:
  // width < W.
  Columns(const Grid& grid, int64_t width)
      : PatternNode(
            {.groups = std::min(GroupsMax(grid.row_tokens()) * CeilDiv(grid.row_tokens(), width),
                                kBlockTokens),
             .comb_lists = 1,
             .combs = 1,
             .tooth = width,
             .period = grid.row_tokens(),
             .keys = grid.extents[1] * width},
            HashNumbers('c', std::array{grid.extents[1], grid.extents[2], width})),
        grid_(grid),
        width_(width) {}

  bool Allows(int64_t q, int64_t k) const override {
    const int64_t row = grid_.row_tokens();
    return std::max(q, k) < grid_.tokens() && q % row / width_ == k % row / width_;
  }
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    const int64_t row = grid_.row_tokens();
    const int64_t end = std::min(window.q_end, grid_.tokens());
    for (int64_t q = window.q_begin, next = 0; q < end; q = next) {
      const int64_t x = q % row;
      const int64_t first = x / width_ * width_;
      const int64_t columns = std::min(width_, row - first);
      next = q - x + first + columns;
      AppendShape({q, next, 0, grid_.tokens(), -kFar, kFar, {first, columns, row}}, window, out);
    }
  }
  BlockSet Unneeded(int64_t, int64_t) const override { return {}; }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  std::array<int64_t, 3> Key() const { return {grid_.extents[1], grid_.extents[2], width_}; }

 private:
  const Grid grid_;
  const int64_t width_;
};

absl::StatusOr<Rules> ReadGridWord(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values,
                           reader.ReadArguments({{"extents", 1, true, 2}, {"n", 1, true}}));
  ANNULUS_ASSIGN_OR_RETURN(const Grid grid, ReadGrid(reader, values[0], 2));
  const int64_t n = values[1].number();
  for (const size_t axis : {1, 2}) {
    if (grid.extents[axis] % n == 0) continue;
    return reader.Refuse(values[1].at, absl::StrCat("a divisor of ", grid.extents[axis]),
                         absl::StrCat(n));
  }
  return reader.SameForAll(
      std::make_shared<Lattice>(grid, grid.extents[1] / n, grid.extents[2] / n));
}

// The first half of the heads look along columns, the others along rows.
absl::StatusOr<Rules> ReadCross(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values,
                           reader.ReadArguments({{"extents", 1, true, 2}, {"width", 1, true}}));
  ANNULUS_ASSIGN_OR_RETURN(const Grid grid, ReadGrid(reader, values[0], 2));
  const int64_t width = std::min(values[1].number(), grid.tokens());
  const TokenRange all{0, grid.tokens()};
  const NodePtr inside = MakeBox(all, all);
  NodePtr columns = inside;
  if (width < grid.row_tokens()) columns = std::make_shared<Columns>(grid, width);
  const NodePtr rows = MakeIntersection({MakeSegments(width * grid.row_tokens(), 0), inside});
  Rules rules;
  for (int head = 0; head < reader.kv_heads(); ++head) {
    rules.push_back(head < (reader.kv_heads() + 1) / 2 ? columns : rows);
  }
  return rules;
}

}  // namespace

absl::StatusOr<Grid> ReadGrid(const PatternReader& reader, const PatternReader::Value& value,
                              size_t axes_min) {
  Grid grid;
  grid.axes = value.numbers.size();
  if (grid.axes < axes_min) {
    return reader.Refuse(value.at, absl::StrCat("at least ", axes_min, " extents joined by x"),
                         absl::StrCat(grid.axes));
  }
  int64_t tokens = 1;
  for (size_t i = 0; i < grid.axes; ++i) {
    const int64_t extent = value.numbers[i];
    if (extent > kGridTokensMax / tokens) {
      return reader.Refuse(value.at, "a grid of at most 2^40 tokens", "more");
    }
    tokens *= extent;
    grid.extents[Grid::kAxes - grid.axes + i] = extent;
  }
  return grid;
}

absl::Span<const PatternWord> GridWords() {
  static constexpr PatternWord kWords[] = {
      {"grid", "grid(HxW,n)",
       "n x n places, spread evenly: rows equal modulo H/n and columns modulo W/n", "2204.01697",
       "grid(8x8,4)", ReadGridWord},
      {"cross", "cross(HxW,width)",
       "the own stripe of `width` columns for the first half of the KV heads, of `width` rows for "
       "the others",
       "2107.00652", "cross(8x8,2)", ReadCross},
  };
  return kWords;
}

}  // namespace annulus
