// permute and order: a pattern over tokens in another order.
#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/pattern.h"
#include "attention/patterns/grid.h"
#include "attention/patterns/nodes.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

// Another order of the tokens [0, tokens): a one-to-one map of positions to places.
class Order {
 public:
  virtual ~Order() = default;
  virtual int64_t tokens() const = 0;
  virtual int64_t PlaceOf(int64_t position) const = 0;
  virtual int64_t PositionAt(int64_t place) const = 0;
  virtual std::vector<int64_t> Key() const = 0;  // equal for equal orders
};

// A pseudorandom order that takes no memory: a Feistel network of four rounds over the next power
// of four, walked until it is back among the tokens.
class Shuffled final : public Order {
 public:
  Shuffled(int64_t seed, int64_t tokens)
      : seed_(seed),
        tokens_(tokens),
        half_bits_((std::bit_width(static_cast<uint64_t>(tokens - 1)) + 1) / 2) {}

  int64_t tokens() const override { return tokens_; }
  int64_t PlaceOf(int64_t position) const override {
    return Walk(position, [this](Halves* halves) {
      for (int round = 0; round < kRounds; ++round) {
        *halves = {halves->low, halves->high ^ Mix(round, halves->low)};
      }
    });
  }
  int64_t PositionAt(int64_t place) const override {
    return Walk(place, [this](Halves* halves) {
      for (int round = kRounds - 1; round >= 0; --round) {
        *halves = {halves->low ^ Mix(round, halves->high), halves->high};
      }
    });
  }
  std::vector<int64_t> Key() const override { return {'s', seed_, tokens_}; }

 private:
  static constexpr int kRounds = 4;
  struct Halves {
    uint64_t high;
    uint64_t low;
  };

  uint64_t Mask() const { return (uint64_t{1} << half_bits_) - 1; }
  uint64_t Mix(int round, uint64_t half) const {
    return HashNumbers('f', std::array{seed_, int64_t{round}, static_cast<int64_t>(half)}) >> 20 &
           Mask();
  }
  template <typename Rounds>
  int64_t Walk(int64_t at, Rounds rounds) const {
    do {
      const auto whole = static_cast<uint64_t>(at);
      Halves halves{whole >> half_bits_, whole & Mask()};
      rounds(&halves);
      at = static_cast<int64_t>(halves.high << half_bits_ | halves.low);
    } while (at >= tokens_);
    return at;
  }

  const int64_t seed_;
  const int64_t tokens_;
  const int half_bits_;
};

// The raster order of a grid whose axes are taken in another order.
class AxesOrder final : public Order {
 public:
  // axes[i]: which axis of `grid` is the i-th of the new order.
  AxesOrder(const Grid& grid, const std::array<size_t, Grid::kAxes>& axes)
      : grid_(grid), axes_(axes) {
    for (size_t i = 0; i < Grid::kAxes; ++i) turned_.extents[i] = grid.extents[axes[i]];
  }

  int64_t tokens() const override { return grid_.tokens(); }
  int64_t PlaceOf(int64_t position) const override {
    const Grid::Place from = grid_.PlaceOf(position);
    return turned_.TokenAt({from[axes_[0]], from[axes_[1]], from[axes_[2]]});
  }
  int64_t PositionAt(int64_t place) const override {
    const Grid::Place from = turned_.PlaceOf(place);
    Grid::Place to = {};
    for (size_t i = 0; i < Grid::kAxes; ++i) to[axes_[i]] = from[i];
    return grid_.TokenAt(to);
  }
  std::vector<int64_t> Key() const override {
    std::vector<int64_t> key(grid_.extents.begin(), grid_.extents.end());
    key.insert(key.end(), axes_.begin(), axes_.end());
    return key;
  }

 private:
  const Grid grid_;
  const std::array<size_t, Grid::kAxes> axes_;
  Grid turned_;
};

// Query and key at places that `inner` allows. Positions beyond the tokens see nothing.
class Reordered final : public PatternNode {
 public:
  Reordered(std::shared_ptr<const Order> order, NodePtr inner)
      : PatternNode({.groups = kBlockTokens,
                     .ranges = std::min(inner->size().keys, order->tokens()),
                     .keys = std::min(inner->size().keys, order->tokens())},
                    HashNumbers('q', HashedBy(*order, *inner))),
        order_(std::move(order)),
        inner_(std::move(inner)) {}

  bool Allows(int64_t q, int64_t k) const override {
    return std::max(q, k) < order_->tokens() &&
           inner_->Allows(order_->PlaceOf(q), order_->PlaceOf(k));
  }

  // Row by row, the keys that stand at the places seen; neighbours are one range.
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    const int64_t end = std::min(window.q_end, order_->tokens());
    ShapeList places;
    std::vector<int64_t> keys;
    for (int64_t q = window.q_begin; q < end; ++q) {
      const int64_t place = order_->PlaceOf(q);
      places.clear();
      inner_->AppendShapes({place, place + 1, 0, order_->tokens()}, &places);
      keys.clear();
      for (const Shape& shape : places) {
        for (int64_t at = shape.comb.NextFrom(shape.k_begin); at < shape.k_end;
             at = shape.comb.NextFrom(at + 1)) {
          keys.push_back(order_->PositionAt(at));
        }
      }
      std::sort(keys.begin(), keys.end());
      keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
      for (size_t i = 0, next = 0; i < keys.size(); i = next) {
        for (next = i + 1; next < keys.size() && keys[next] == keys[next - 1] + 1;) ++next;
        AppendShape({q, q + 1, keys[i], keys[next - 1] + 1, -kFar, kFar, {}}, window, out);
      }
    }
  }
  BlockSet Unneeded(int64_t, int64_t) const override { return {}; }
  bool Equals(const PatternNode& other) const override {
    const Reordered* same = dynamic_cast<const Reordered*>(&other);
    return same != nullptr && same->order_->Key() == order_->Key() &&
           (same->inner_ == inner_ || same->inner_->Equals(*inner_));
  }

 private:
  static std::vector<int64_t> HashedBy(const Order& order, const PatternNode& inner) {
    std::vector<int64_t> numbers = order.Key();
    numbers.push_back(static_cast<int64_t>(inner.hash()));
    return numbers;
  }

  const std::shared_ptr<const Order> order_;
  const NodePtr inner_;
};

// ", pattern)": what the order is for.
absl::StatusOr<Rules> ReadReordered(PatternReader& reader, std::shared_ptr<const Order> order) {
  constexpr int64_t kKeysMax = kPatternTermsMax / kBlockTokens;
  reader.SkipBlanks();
  const size_t begin = reader.at();
  ANNULUS_ASSIGN_OR_RETURN(const Rules inner, reader.ReadPattern());
  ANNULUS_RETURN_IF_ERROR(reader.Expect(')'));
  ANNULUS_RETURN_IF_ERROR(reader.CountParts(begin, inner.size()));
  std::map<const PatternNode*, NodePtr> made;
  Rules rules;
  for (const NodePtr& rule : inner) {
    if (!rule->shaped()) {
      return reader.Refuse(begin, "a pattern without lists, which lie in an order of their own",
                           "one with a list");
    }
    const int64_t keys = std::min(rule->size().keys, order->tokens());
    if (keys > kKeysMax) {
      return reader.Refuse(
          begin, absl::StrCat("a pattern of which a query sees at most ", kKeysMax, " keys"),
          rule->size().keys >= kFar ? "one without a bound" : absl::StrCat(keys));
    }
    NodePtr& node = made[rule.get()];
    if (node == nullptr) node = std::make_shared<Reordered>(order, rule);
    rules.push_back(node);
  }
  return rules;
}

absl::StatusOr<Rules> ReadPermute(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values,
                           reader.ReadFirstArguments({{"seed", 0, true}, {"tokens", 1, true}}));
  if (values[1].number() > kFar) {
    return reader.Refuse(values[1].at, "at most 2^60 tokens", "more");
  }
  return ReadReordered(reader, std::make_shared<Shuffled>(values[0].number(), values[1].number()));
}

absl::StatusOr<Rules> ReadOrder(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(
      const auto values, reader.ReadFirstArguments(
                             {{"extents", 1, true, Grid::kAxes}, {"axes", 0, true, Grid::kAxes}}));
  ANNULUS_ASSIGN_OR_RETURN(const Grid grid, ReadGrid(reader, values[0], 2));
  std::array<size_t, Grid::kAxes> axes = {0, 1, 2};
  std::array<bool, Grid::kAxes> named = {};
  bool each_once = values[1].numbers.size() == grid.axes;
  for (size_t i = 0; each_once && i < grid.axes; ++i) {
    const int64_t axis = values[1].numbers[i];
    each_once = axis < static_cast<int64_t>(grid.axes) && !std::exchange(named[axis], true);
    if (each_once) axes[Grid::kAxes - grid.axes + i] = Grid::kAxes - grid.axes + axis;
  }
  if (!each_once) {
    return reader.Refuse(values[1].at,
                         absl::StrCat("the axes 0 to ", grid.axes - 1, ", each once, joined by x"),
                         "others");
  }
  return ReadReordered(reader, std::make_shared<AxesOrder>(grid, axes));
}

}  // namespace

absl::Span<const PatternWord> PermuteWords() {
  static constexpr PatternWord kWords[] = {
      {"permute", "permute(seed,tokens,pattern)",
       "the pattern over a random order of the first `tokens` tokens, another one for each seed",
       "2604.00754", "causal & permute(1,64,window(8,8))", ReadPermute},
      {"order", "order(TxHxW,axes,pattern)",
       "the pattern over the raster order of a grid's axes in another order: 2x0x1, or 1x0 for HxW",
       "2506.16054", "order(8x8,1x0,window(6,6))", ReadOrder},
  };
  return kWords;
}

}  // namespace annulus
