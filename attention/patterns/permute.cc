// permute and order: a pattern over tokens in another order.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/pattern.h"
#include "attention/pattern_node.h"
#include "attention/pattern_rows.h"
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
        half_bits_((std::bit_width(static_cast<uint64_t>(tokens - 1)) + 1) / 2) {
    for (int round = 0; round < kRounds; ++round) {
      before_half_[round] = HashNumbers('f', std::array{seed_, int64_t{round}});
    }
  }

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
    return AddToHash(before_half_[round], half) >> 20 & Mask();
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
  std::array<uint64_t, kRounds> before_half_;  // of each round, the hash of all before its half
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

// A pair of queries of one block: its key's position and its row in the block, in one number, so
// that they sort by key.
constexpr int kRowBits = std::countr_zero(static_cast<uint64_t>(kBlockTokens));

// So that pairs fit.
constexpr int64_t kOrderTokensMax = int64_t{1} << 48;

int64_t KeyOf(uint64_t pair) {
  return static_cast<int64_t>(pair >> kRowBits);
}
int64_t RowOf(uint64_t pair) {
  return static_cast<int64_t>(pair & (kBlockTokens - 1));
}

// Sorts numbers below 2^bits: digit by digit, lowest first, where they are many.
void SortNumbers(int bits, std::vector<uint64_t>* numbers) {
  constexpr int kDigitBits = 11;
  constexpr size_t kFew = 512;
  if (numbers->size() < kFew) return std::sort(numbers->begin(), numbers->end());
  std::vector<uint64_t> sorted(numbers->size());
  for (int low = 0; low < bits; low += kDigitBits) {
    std::array<size_t, (size_t{1} << kDigitBits) + 1> begin = {};
    const auto digit = [low](uint64_t number) {
      return static_cast<size_t>(number >> low) & ((size_t{1} << kDigitBits) - 1);
    };
    for (const uint64_t number : *numbers) ++begin[digit(number) + 1];
    for (size_t d = 1; d < begin.size(); ++d) begin[d] += begin[d - 1];
    for (const uint64_t number : *numbers) sorted[begin[digit(number)]++] = number;
    numbers->swap(sorted);
  }
}

// Query and key at places that `inner` allows. Positions beyond the tokens see nothing. Where
// neighbours stand apart no few shapes tell it, so it answers by cells, from the pairs of the
// queries in question, which a thread keeps for the cells that it asks for next.
class Reordered final : public PatternNode {
 public:
  Reordered(std::shared_ptr<const Order> order, NodePtr inner)
      : PatternNode({.ranges = 1, .keys = std::min(inner->size().keys, order->tokens())},
                    HashNumbers('q', HashedBy(*order, *inner))),
        order_(std::move(order)),
        inner_(std::move(inner)) {}

  bool shaped() const override { return false; }

  bool Allows(int64_t q, int64_t k) const override {
    return std::max(q, k) < order_->tokens() &&
           inner_->Allows(order_->PlaceOf(q), order_->PlaceOf(k));
  }

  void AppendShapes(const ShapeWindow&, ShapeList*) const override {}

  void Row(const ShapeWindow& window, std::vector<TileRun>* out) const override {
    out->clear();
    RunMaker runs(out);
    int64_t block = -1, pairs = 0;
    const auto add = [&] {
      if (block < 0) return;
      const int64_t begin = block * kBlockTokens;  // a whole cell is read from there on
      const int64_t end = std::min(window.k_end, (block + 1) * kBlockTokens);
      runs.Add(block, pairs == (window.q_end - window.q_begin) * (end - begin));
    };
    ForEachPair(window, [&](int64_t, int64_t key) {
      if (key / kBlockTokens != block) {
        add();
        block = key / kBlockTokens;
        pairs = 0;
      }
      ++pairs;
    });
    add();
    runs.Finish();
  }

  void Mask(const ShapeWindow& window, int64_t, int64_t k_block, uint64_t mask[64]) const override {
    std::fill(mask, mask + kBlockTokens, 0);
    ForEachPair(window, [&](int64_t row, int64_t key) {
      mask[row] |= uint64_t{1} << (key - k_block * kBlockTokens);
    });
  }

  absl::optional<int64_t> CountPairs(const ShapeWindow& window) const override {
    int64_t pairs = 0;
    for (int64_t q = window.q_begin; q < window.q_end;) {
      const int64_t end = std::min(window.q_end, (q / kBlockTokens + 1) * kBlockTokens);
      ForEachPair({q, end, window.k_begin, window.k_end}, [&](int64_t, int64_t) { ++pairs; });
      q = end;
    }
    return pairs;
  }

  BlockSet Unneeded(int64_t, int64_t) const override { return {}; }
  bool Equals(const PatternNode& other) const override {
    const Reordered* same = dynamic_cast<const Reordered*>(&other);
    return same != nullptr && same->order_->Key() == order_->Key() &&
           (same->inner_ == inner_ || same->inner_->Equals(*inner_));
  }

 private:
  // The pairs of some queries of one block, by key.
  struct Queries {
    uint64_t node = 0;
    TokenRange q;
    std::vector<uint64_t> pairs;
  };

  static std::vector<int64_t> HashedBy(const Order& order, const PatternNode& inner) {
    std::vector<int64_t> numbers = order.Key();
    numbers.push_back(static_cast<int64_t>(inner.hash()));
    return numbers;
  }

  // fn(row in its block, key) for the pairs within the window, of one query block, by key.
  template <typename Fn>
  void ForEachPair(const ShapeWindow& window, Fn fn) const {
    if (window.q_begin >= window.q_end || window.k_begin >= window.k_end) return;
    const std::vector<uint64_t>& pairs = PairsOf({window.q_begin, window.q_end});
    const auto first = static_cast<uint64_t>(window.k_begin) << kRowBits;
    for (auto at = std::lower_bound(pairs.begin(), pairs.end(), first);
         at != pairs.end() && KeyOf(*at) < window.k_end; ++at) {
      const int64_t q = window.q_begin / kBlockTokens * kBlockTokens + RowOf(*at);
      if (q >= window.q_begin && q < window.q_end) fn(RowOf(*at), KeyOf(*at));
    }
  }

  // Those of `q`, perhaps among others. A decode step asks for one query of a block of 64.
  const std::vector<uint64_t>& PairsOf(TokenRange q) const {
    // Patterns that stand beside each other take turns.
    static thread_local std::array<Queries, 4> kept;
    static thread_local size_t next = 0;
    for (const Queries& queries : kept) {
      const bool holds = queries.q.begin <= q.begin && q.end <= queries.q.end;
      if (queries.node == number_ && holds) return queries.pairs;
    }
    Queries& queries = kept[next++ % kept.size()];
    queries.node = 0;
    queries.pairs.clear();
    AppendPairs(q, &queries.pairs);
    queries.node = number_;
    queries.q = q;
    return queries.pairs;
  }

  void AppendPairs(TokenRange queries, std::vector<uint64_t>* pairs) const {
    const int64_t end = std::min(queries.end, order_->tokens());
    ShapeList places;
    for (int64_t q = queries.begin; q < end; ++q) {
      const int64_t place = order_->PlaceOf(q);
      places.clear();
      inner_->AppendShapes({place, place + 1, 0, order_->tokens()}, &places);
      for (const Shape& shape : places) {
        for (int64_t at = shape.comb.NextFrom(shape.k_begin); at < shape.k_end;
             at = shape.comb.NextFrom(at + 1)) {
          pairs->push_back(static_cast<uint64_t>(order_->PositionAt(at)) << kRowBits |
                           static_cast<uint64_t>(q % kBlockTokens));
        }
      }
    }
    SortNumbers(kRowBits + std::bit_width(static_cast<uint64_t>(order_->tokens())), pairs);
    pairs->erase(std::unique(pairs->begin(), pairs->end()), pairs->end());
  }

  static uint64_t NextNumber() {
    static std::atomic<uint64_t> last = 0;
    return ++last;
  }

  const uint64_t number_ = NextNumber();  // no other node of the process has it
  const std::shared_ptr<const Order> order_;
  const NodePtr inner_;
};

// ", pattern)": what the order is for.
absl::StatusOr<Rules> ReadReordered(PatternReader& reader, std::shared_ptr<const Order> order) {
  // Of one query, so that what a thread keeps of a block of queries is at most 8 MiB.
  constexpr int64_t kKeysMax = 1 << 14;
  reader.SkipBlanks();
  const size_t begin = reader.at();
  if (order->tokens() > kOrderTokensMax) {
    return reader.Refuse(begin, "an order of at most 2^48 tokens before it", "one of more");
  }
  ANNULUS_ASSIGN_OR_RETURN(const Rules inner, reader.ReadPattern());
  ANNULUS_RETURN_IF_ERROR(reader.Expect(')'));
  ANNULUS_RETURN_IF_ERROR(reader.CountParts(begin, inner.size()));
  std::map<const PatternNode*, NodePtr> made;
  Rules rules;
  for (const NodePtr& rule : inner) {
    if (!rule->shaped()) {
      return reader.Refuse(begin, "a pattern without list, permute and order",
                           "one with such a word");
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
