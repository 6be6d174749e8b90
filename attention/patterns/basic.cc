// full, causal and window: bands of distances. sink, rows and keys: ranges of positions.
#include <algorithm>
#include <array>
#include <memory>

#include "absl/strings/str_cat.h"
#include "attention/patterns/nodes.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

class Band final : public PatternNode {
 public:
  Band(int64_t d_min, int64_t d_max)
      : PatternNode({.ranges = 1, .keys = KeysOf(d_min, d_max)},
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
  static int64_t KeysOf(int64_t d_min, int64_t d_max) {
    return d_min <= -kFar || d_max >= kFar ? kFar : std::max<int64_t>(0, d_max - d_min + 1);
  }

  const int64_t d_min_;
  const int64_t d_max_;
};

// Queries and keys of two ranges of positions: sink, rows and keys.
class Box final : public PatternNode {
 public:
  Box(TokenRange q, TokenRange k)
      : PatternNode({.groups = q.begin > 0 || q.end < kFar ? 3 : 1, .ranges = 1, .keys = k.size()},
                    HashNumbers('k', std::array{q.begin, q.end, k.begin, k.end})),
        q_(q),
        k_(k) {}

  bool Allows(int64_t q, int64_t k) const override {
    return q_.begin <= q && q < q_.end && k_.begin <= k && k < k_.end;
  }
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    AppendShape({q_.begin, q_.end, k_.begin, k_.end, -kFar, kFar, {}}, window, out);
  }
  bool AppendWide(const ShapeWindow& window, ShapeList* out) const override {
    AppendShapes(window, out);
    return true;
  }
  BlockSet Unneeded(int64_t next_q, int64_t blocks) const override {
    if (next_q >= q_.end) return BlockSet::Range(0, blocks);
    const int64_t before = std::min(k_.begin / kBlockTokens, blocks);
    const int64_t after = std::clamp(BlocksOf(k_.end), before, blocks);
    return BlockSet::Range(0, before).Union(BlockSet::Range(after, blocks - after));
  }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  std::array<int64_t, 4> Key() const { return {q_.begin, q_.end, k_.begin, k_.end}; }

 private:
  const TokenRange q_;
  const TokenRange k_;
};

absl::StatusOr<Rules> ReadFull(PatternReader& reader) {
  return reader.SameForAll(MakeBand(-kFar, kFar));
}

absl::StatusOr<Rules> ReadCausal(PatternReader& reader) {
  return reader.SameForAll(MakeBand(0, kFar));
}

absl::StatusOr<Rules> ReadWindow(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values,
                           reader.ReadArguments({{"left", 0, true}, {"right", 0, false}}));
  return reader.SameForAll(MakeBand(-values[1].number(), values[0].number() - 1));
}

absl::StatusOr<Rules> ReadSink(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values, reader.ReadArguments({{"n", 0, true}}));
  return reader.SameForAll(MakeBox({0, kFar}, {0, values[0].number()}));
}

// "(from[,to])": `to` is open where it is not given.
absl::StatusOr<TokenRange> ReadPositions(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values,
                           reader.ReadArguments({{"from", 0, true}, {"to", 0, false}}));
  const int64_t from = values[0].number();
  const int64_t to = values[1].given ? values[1].number() : kFar;
  if (to >= from) return TokenRange{from, to};
  return reader.Refuse(values[1].at, absl::StrCat("a position from ", from, " on"),
                       absl::StrCat(to));
}

absl::StatusOr<Rules> ReadRows(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const TokenRange rows, ReadPositions(reader));
  return reader.SameForAll(MakeBox(rows, {0, kFar}));
}

absl::StatusOr<Rules> ReadKeys(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const TokenRange keys, ReadPositions(reader));
  return reader.SameForAll(MakeBox({0, kFar}, keys));
}

}  // namespace

NodePtr MakeBand(int64_t d_min, int64_t d_max) {
  return std::make_shared<Band>(d_min, d_max);
}

NodePtr MakeBox(TokenRange q, TokenRange k) {
  const auto cut = [](TokenRange range) {
    return TokenRange{std::min(range.begin, kFar), std::min(range.end, kFar)};
  };
  return std::make_shared<Box>(cut(q), cut(k));
}

absl::Span<const PatternWord> BasicWords() {
  static constexpr PatternWord kWords[] = {
      {"full", "full", "every key", "", "full", ReadFull},
      {"causal", "causal", "keys up to the query's own position", "", "causal", ReadCausal},
      {"window", "window(left[,right=0])", "q - k < left and k - q <= right, in tokens", "",
       "window(12,4)", ReadWindow},
      {"sink", "sink(n)", "the first n keys", "2309.17453", "causal & (sink(4) | window(8))",
       ReadSink},
      {"rows", "rows(from[,to])", "queries at positions from `from` up to `to`, all keys", "",
       "rows(24,40)", ReadRows},
      {"keys", "keys(from[,to])", "keys at positions from `from` up to `to`, for all queries", "",
       "keys(24,40)", ReadKeys},
  };
  return kWords;
}

}  // namespace annulus
