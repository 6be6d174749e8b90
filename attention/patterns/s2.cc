// s2: S2-Attention (arXiv 2407.17678 and its reference code).
#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/pattern_rows.h"
#include "attention/patterns/nodes.h"
#include "attention/patterns/word.h"
#include "base/status.h"

namespace annulus {
namespace {

// One head: causal, and key block j seen by query block i iff i − j < local or j ≡ residue
// (mod stride). block·stride ≤ kFar.
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

absl::StatusOr<Rules> ReadS2(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values, reader.ReadArguments({{"block", 1, true},
                                                                    {"local", 1, true},
                                                                    {"stride", 1, true},
                                                                    {"dense_heads", 0, false},
                                                                    {"step", 0, false},
                                                                    {"offset", 0, false}}));
  const int64_t block = values[0].number();
  const int64_t stride = values[2].number();
  const int64_t dense_heads = values[3].number();
  const int64_t kv_heads = reader.kv_heads();
  if (stride > kFar / block) {
    return reader.Refuse(values[2].at, "block·stride of at most 2^60 tokens", "more");
  }
  if (dense_heads > kv_heads) {
    return reader.Refuse(values[3].at,
                         absl::StrCat("dense_heads of at most ", kv_heads, " KV heads"),
                         absl::StrCat(dense_heads));
  }
  ANNULUS_RETURN_IF_ERROR(reader.CountParts(values[0].at, static_cast<size_t>(kv_heads)));
  const int64_t step =
      values[4].given ? values[4].number() : std::max<int64_t>(1, stride / kv_heads);
  Rules rules;
  for (int64_t head = 0; head < kv_heads; ++head) {
    const __int128 shift = static_cast<__int128>(head) * step + values[5].number();
    const int64_t residue = (stride - static_cast<int64_t>(shift % stride)) % stride;
    // Every block is on a stride of 1: that is causal, and without a comb.
    const bool dense = head >= kv_heads - dense_heads || stride == 1;
    rules.push_back(dense ? MakeBand(0, kFar)
                          : std::make_shared<S2>(block, values[1].number(), stride, residue));
  }
  return rules;
}

}  // namespace

absl::Span<const PatternWord> S2Words() {
  static constexpr PatternWord kWords[] = {
      {"s2", "s2(block,local,stride[,dense_heads=0][,step=S][,offset=0])",
       "causal; the last `local` blocks, and blocks j with (j + head·step + offset) mod stride = "
       "0; "
       "the last dense_heads KV heads see all",
       "2407.17678", "s2(4,2,4)", ReadS2},
  };
  return kWords;
}

}  // namespace annulus
