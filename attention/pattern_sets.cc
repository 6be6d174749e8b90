// Unions and intersections of pattern nodes.
#include <algorithm>
#include <numeric>
#include <utility>

#include "attention/pattern_cells.h"
#include "attention/pattern_node.h"

namespace annulus {
namespace {

// Two lists of shapes are intersected pair by pair up to so many pairs.
constexpr size_t kWideMeetingsMax = size_t{1} << 18;

int64_t Saturated(__int128 value) {
  return static_cast<int64_t>(std::min<__int128>(value, kFar));
}

int64_t SaturatedProduct(int64_t a, int64_t b) {
  return Saturated(static_cast<__int128>(a) * b);
}

// Where `m` shapes in `lists` of them meet `n` in `other_lists`, list by list.
int64_t Meetings(int64_t m, int64_t lists, int64_t n, int64_t other_lists) {
  if (m == 0 || n == 0) return 0;
  const __int128 all = static_cast<__int128>(m) * other_lists + static_cast<__int128>(n) * lists -
                       static_cast<__int128>(lists) * other_lists;
  return Saturated(all);
}

// Two ways to cut the rows of one query block, laid over each other.
int64_t GroupsTogether(int64_t a, int64_t b) {
  return std::min(a + b - 1, kBlockTokens);
}

uint64_t HashOf(char kind, const std::vector<NodePtr>& parts) {
  std::vector<uint64_t> hashes;
  for (const NodePtr& part : parts) hashes.push_back(part->hash());
  return HashNumbers(kind, hashes);
}

std::vector<BlockSet> UnneededOf(const std::vector<NodePtr>& parts, int64_t next_q,
                                 int64_t blocks) {
  std::vector<BlockSet> sets;
  for (const NodePtr& part : parts) sets.push_back(part->Unneeded(next_q, blocks));
  return sets;
}

bool SameParts(const std::vector<NodePtr>& a, const std::vector<NodePtr>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const NodePtr& x, const NodePtr& y) { return x == y || x->Equals(*y); });
}

bool AreShaped(const std::vector<NodePtr>& parts) {
  return std::all_of(parts.begin(), parts.end(),
                     [](const NodePtr& part) { return part->shaped(); });
}

class Union final : public PatternNode {
 public:
  explicit Union(std::vector<NodePtr> parts)
      : PatternNode(SizeOf(parts), HashOf('|', parts)), parts_(std::move(parts)) {}

  bool Allows(int64_t q, int64_t k) const override {
    return std::any_of(parts_.begin(), parts_.end(),
                       [q, k](const NodePtr& part) { return part->Allows(q, k); });
  }
  bool shaped() const override { return AreShaped(parts_); }
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    for (const NodePtr& part : parts_) part->AppendShapes(window, out);
  }
  void Row(const ShapeWindow& window, std::vector<TileRun>* out) const override {
    shaped() ? PatternNode::Row(window, out) : RowOfUnion(parts_, window, out);
  }
  void Mask(const ShapeWindow& window, int64_t q_block, int64_t k_block,
            uint64_t mask[64]) const override {
    std::fill(mask, mask + kBlockTokens, 0);
    for (const NodePtr& part : parts_) {
      uint64_t of_part[kBlockTokens];
      part->Mask(window, q_block, k_block, of_part);
      for (int64_t r = 0; r < kBlockTokens; ++r) mask[r] |= of_part[r];
    }
  }
  bool AppendWide(const ShapeWindow& window, ShapeList* out) const override {
    return OfAll([&](const PatternNode& part) { return part.AppendWide(window, out); });
  }
  bool AppendBands(const ShapeWindow& window, std::vector<BlockBand>* out) const override {
    return OfAll([&](const PatternNode& part) { return part.AppendBands(window, out); });
  }
  bool AppendSeen(const ShapeWindow& window, ShapeList* out) const override {
    return OfAll([&](const PatternNode& part) { return part.AppendSeen(window, out); });
  }
  BlockSet Unneeded(int64_t next_q, int64_t blocks) const override {
    BlockSet all = BlockSet::Range(0, blocks);
    for (const BlockSet& set : UnneededOf(parts_, next_q, blocks)) all = all.Intersect(set);
    return all;
  }
  bool Equals(const PatternNode& other) const override {
    const Union* same = dynamic_cast<const Union*>(&other);
    return same != nullptr && SameParts(parts_, same->parts_);
  }

 private:
  template <typename Fn>
  bool OfAll(Fn fn) const {
    return std::all_of(parts_.begin(), parts_.end(),
                       [&fn](const NodePtr& part) { return fn(*part); });
  }

  static Size SizeOf(const std::vector<NodePtr>& parts) {
    Size all{.lists = 0, .keys = 0};
    for (const NodePtr& part : parts) {
      const Size& size = part->size();
      all.groups = GroupsTogether(all.groups, size.groups);
      all.lists += size.lists;
      all.ranges += size.ranges;
      all.comb_lists += size.comb_lists;
      all.combs += size.combs;
      all.tooth = std::max(all.tooth, size.tooth);
      all.period = std::gcd(all.period, size.period);
      all.keys = std::min(all.keys + size.keys, kFar);
    }
    return all;
  }

  const std::vector<NodePtr> parts_;
};

class Intersection final : public PatternNode {
 public:
  explicit Intersection(std::vector<NodePtr> parts)
      : PatternNode(SizeOf(parts), HashOf('&', parts)), parts_(std::move(parts)) {}

  bool Allows(int64_t q, int64_t k) const override {
    return std::all_of(parts_.begin(), parts_.end(),
                       [q, k](const NodePtr& part) { return part->Allows(q, k); });
  }
  bool shaped() const override { return AreShaped(parts_); }
  void Row(const ShapeWindow& window, std::vector<TileRun>* out) const override {
    shaped() ? PatternNode::Row(window, out) : RowOfIntersection(parts_, window, out);
  }
  void Mask(const ShapeWindow& window, int64_t q_block, int64_t k_block,
            uint64_t mask[64]) const override {
    std::fill(mask, mask + kBlockTokens, ~uint64_t{0});
    for (const NodePtr& part : parts_) {
      uint64_t of_part[kBlockTokens];
      part->Mask(window, q_block, k_block, of_part);
      for (int64_t r = 0; r < kBlockTokens; ++r) mask[r] &= of_part[r];
    }
  }
  void AppendShapes(const ShapeWindow& window, ShapeList* out) const override {
    ShapeList common;
    parts_.front()->AppendShapes(window, &common);
    for (size_t i = 1; i < parts_.size() && !common.empty(); ++i) {
      ShapeList part;
      parts_[i]->AppendShapes(window, &part);
      ShapeList both;
      for (const Shape& a : common) {
        for (const Shape& b : part) AppendIntersection(a, b, &both);
      }
      common = std::move(both);
    }
    out->insert(out->end(), common.begin(), common.end());
  }
  bool AppendWide(const ShapeWindow& window, ShapeList* out) const override {
    ShapeList common;
    if (!parts_.front()->AppendWide(window, &common)) return false;
    for (size_t i = 1; i < parts_.size() && !common.empty(); ++i) {
      ShapeList part;
      if (!parts_[i]->AppendWide(window, &part)) return false;
      if (common.size() * part.size() > kWideMeetingsMax) return false;
      ShapeList both;
      for (const Shape& a : common) {
        for (const Shape& b : part) AppendIntersection(a, b, &both);
      }
      common = std::move(both);
    }
    out->insert(out->end(), common.begin(), common.end());
    return true;
  }
  BlockSet Unneeded(int64_t next_q, int64_t blocks) const override {
    BlockSet all;
    for (const BlockSet& set : UnneededOf(parts_, next_q, blocks)) all = all.Union(set);
    return all;
  }
  bool Equals(const PatternNode& other) const override {
    const Intersection* same = dynamic_cast<const Intersection*>(&other);
    return same != nullptr && SameParts(parts_, same->parts_);
  }

 private:
  static Size SizeOf(const std::vector<NodePtr>& parts) {
    Size all = parts.front()->size();
    for (size_t i = 1; i < parts.size(); ++i) all = Both(all, parts[i]->size());
    return all;
  }

  // Two combs meet once for every shift of their teeth that their periods allow: on the same keys,
  // so that these are lists of their own.
  static Size Both(const Size& a, const Size& b) {
    Size both{.groups = GroupsTogether(a.groups, b.groups),
              .lists = SaturatedProduct(a.lists, b.lists),
              .ranges = Meetings(a.ranges, a.lists, b.ranges, b.lists),
              .comb_lists = Saturated(static_cast<__int128>(a.comb_lists) * b.lists +
                                      static_cast<__int128>(a.lists) * b.comb_lists),
              .combs = Saturated(
                  static_cast<__int128>(Meetings(a.combs, a.comb_lists, b.ranges, b.lists)) +
                  Meetings(a.ranges, a.lists, b.combs, b.comb_lists)),
              .tooth = std::max(a.tooth, b.tooth),
              .period = std::gcd(a.period, b.period),
              .keys = std::min(a.keys, b.keys)};
    if (a.combs == 0 || b.combs == 0) return both;
    const int64_t shifts = (a.tooth + b.tooth - 2) / both.period + 1;
    const int64_t met = Meetings(a.combs, a.comb_lists, b.combs, b.comb_lists);
    const int64_t lists = SaturatedProduct(SaturatedProduct(a.comb_lists, b.comb_lists), shifts);
    both.combs = Saturated(static_cast<__int128>(both.combs) + SaturatedProduct(met, shifts));
    both.comb_lists = Saturated(static_cast<__int128>(both.comb_lists) + lists);
    return both;
  }

  const std::vector<NodePtr> parts_;
};

}  // namespace

int64_t PatternNode::Size::shapes() const {
  return SaturatedProduct(groups, std::min(ranges + combs, kFar));
}

NodePtr MakeUnion(std::vector<NodePtr> parts) {
  return parts.size() == 1 ? parts.front() : std::make_shared<Union>(std::move(parts));
}

NodePtr MakeIntersection(std::vector<NodePtr> parts) {
  return parts.size() == 1 ? parts.front() : std::make_shared<Intersection>(std::move(parts));
}

}  // namespace annulus
