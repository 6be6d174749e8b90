// docs: documents of given lengths. segments: documents of one length.
#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "attention/patterns/nodes.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

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

// Documents of one length without end.
class Segments final : public PatternNode {
 public:
  // 0 ≤ shift < tokens.
  Segments(int64_t tokens, int64_t shift)
      : PatternNode({.groups = GroupsMax(tokens), .ranges = 1, .keys = tokens},
                    HashNumbers('e', std::array{tokens, shift})),
        tokens_(tokens),
        shift_(shift) {}

  bool Allows(int64_t q, int64_t k) const override { return Of(q) == Of(k); }
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    for (int64_t i = Of(window.q_begin); i <= Of(window.q_end - 1); ++i) {
      const TokenRange one{Begin(i), Begin(i + 1)};
      AppendShape({one.begin, one.end, one.begin, one.end, -kFar, kFar, {}}, window, out);
    }
  }
  bool AppendWide(const ShapeWindow& window, ShapeList* out) const override {
    if (Of(window.q_end - 1) - Of(window.q_begin) >= kWideRunsMax) return false;
    AppendShapes(window, out);
    return true;
  }
  absl::optional<int64_t> CountPairs(const ShapeWindow& window) const override {
    if (Of(window.q_end - 1) - Of(window.q_begin) >= kCountedRunsMax) return absl::nullopt;
    return PairsOfDisjoint(*this, window);
  }
  BlockSet Unneeded(int64_t next_q, int64_t blocks) const override {
    return BlockSet::Range(0, std::clamp<int64_t>(Begin(Of(next_q)) / kBlockTokens, 0, blocks));
  }
  bool Equals(const PatternNode& other) const override { return SameAs(*this, other); }
  std::pair<int64_t, int64_t> Key() const { return {tokens_, shift_}; }

 private:
  int64_t Of(int64_t position) const { return FloorDiv(position - shift_, tokens_); }
  int64_t Begin(int64_t i) const { return i * tokens_ + shift_; }

  const int64_t tokens_;
  const int64_t shift_;
};

absl::StatusOr<Rules> ReadDocs(PatternReader& reader) {
  ANNULUS_RETURN_IF_ERROR(reader.Expect('('));
  DocsTotal total;
  reader.SkipBlanks();
  total.position = static_cast<int64_t>(reader.at()) + 1;
  std::vector<int64_t> lengths;
  ANNULUS_ASSIGN_OR_RETURN(const auto values, reader.ReadNumbers("a document's length", 1));
  for (const PatternReader::Value& value : values) {
    if (value.number() > kFar - total.tokens) {
      return reader.Refuse(value.at, "document lengths of at most 2^60 tokens in all", "more");
    }
    lengths.push_back(value.number());
    total.tokens += value.number();
  }
  reader.AddDocs(total);
  return reader.SameForAll(std::make_shared<Docs>(lengths));
}

absl::StatusOr<Rules> ReadSegments(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values,
                           reader.ReadArguments({{"tokens", 1, true}, {"shift", 0, false}}));
  const int64_t tokens = std::min(values[0].number(), kFar);
  return reader.SameForAll(MakeSegments(tokens, values[1].number() % tokens));
}

}  // namespace

NodePtr MakeSegments(int64_t tokens, int64_t shift) {
  return std::make_shared<Segments>(tokens, shift);
}

absl::Span<const PatternWord> DocsWords() {
  static constexpr PatternWord kWords[] = {
      {"docs", "docs(length,length,…)",
       "keys of the query's own document; the last one of a context that grows has no end", "",
       "causal & docs(16,24,8,16)", ReadDocs},
      {"segments", "segments(tokens[,shift=0])",
       "keys of the query's own segment; segments begin at shift + i·tokens for every integer i",
       "2309.12307 §3.2", "causal & segments(16,8)", ReadSegments},
  };
  return kWords;
}

}  // namespace annulus
