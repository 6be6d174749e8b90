// xattention(threshold[,stride=16][,block=128]): block sparse attention by antidiagonal scores
// (2503.16428 §2; the code published with it).
//
// Queries and keys are put into groups of `stride`, at multiples of it. A query head scores query
// group a by key group b, b ≤ a, by s = scale · Σ_i q_{stride−1−i}·k_i / stride over the places
// i of a group, and weighs the key groups by the softmax of these. A block of `block` queries gives
// a block of keys what its groups give to the groups of that, in sum, rounded to f32. The block
// sees the first block, its own one, and of the others those of the highest sums, the lower first
// of equal ones, until what was seen has `threshold` of the sum of all; of each the keys up to the
// query.
//
// Blocks lie at multiples of `block`, whatever a call's first query is. Queries of a group that the
// call does not bring count as zeros, as the published code pads, and so do keys that the context
// does not have; a group of which the call brings no query is not counted. A call that begins
// within a block gives its first rows what the queries that it brings choose. So a prefill that is
// cut at multiples of `block` chooses what one call would.
//
// The published threshold: 0.9, by head from 0.8 to 0.95 (heads(…) gives KV heads their own); its
// stride: 8 or 16. It is for prefill alone: a call of fewer queries than a group is refused.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "attention/patterns/word.h"
#include "attention/row_selector.h"
#include "attention/select/softmax.h"
#include "attention/select/unit_argument.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int64_t kStrideDefault = 16;
constexpr int64_t kBlockDefault = 128;

class XAttention final : public RowSelector {
 public:
  XAttention(const PatternReader::Value& threshold, int64_t stride, int64_t block)
      : RowSelector(
            absl::StrCat("xattention(", threshold.DecimalText(), ",", stride, ",", block, ")"),
            Summary::kRows, block, kListKeysMax,
            {.row_tokens = block, .group_tokens = stride, .scored_tokens = stride}),
        threshold_(threshold.decimal()) {}

  int64_t UnitsEnd(int64_t last, int64_t kv_tokens) const override {
    return std::min(last, kv_tokens - 1) / scored_tokens() + 1;
  }

  // Reversed, so that each query meets its antidiagonal's key.
  void ExpandGroup(absl::Span<const float> q, int64_t missing, int dim, double* to) const override {
    std::fill(to, to + Width(dim), 0.0);
    double* of_query = to + (scored_tokens() - 1 - missing) * dim;
    for (size_t i = 0; i < q.size(); i += static_cast<size_t>(dim), of_query -= dim) {
      std::copy_n(q.data() + i, dim, of_query);
    }
  }

  void Pick(const RowScores& row, std::vector<int32_t>* keys) const override {
    const int64_t stride = scored_tokens(), in_block = unit_tokens() / stride;
    const double scale = row.scale / static_cast<double>(stride);
    std::vector<double> weights, sums(static_cast<size_t>((row.units - 1) / in_block + 1));
    for (int64_t group = 0; group < row.groups; ++group) {
      const auto seen =
          static_cast<size_t>(std::min(row.units, row.queries.begin / stride + group + 1));
      weights.resize(seen);
      Softmax({row.Of(0, group), seen}, scale, absl::MakeSpan(weights));
      for (size_t u = 0; u < seen; ++u) sums[u / static_cast<size_t>(in_block)] += weights[u];
    }
    const auto own = static_cast<int32_t>(OwnUnit(row.queries.end - 1, row.kv_tokens));
    std::vector<Candidate> others;
    double total = 0, seen = 0;
    for (int32_t block = 0; block < std::ssize(sums); ++block) {
      const auto sum = static_cast<float>(sums[static_cast<size_t>(block)]);
      total += sum;
      if (block == 0 || block == own) {
        seen += sum;
      } else {
        others.push_back({sum, block});
      }
    }
    std::sort(others.begin(), others.end(), Before);
    const auto first = static_cast<int64_t>(keys->size());
    keys->push_back(0);
    if (own > 0) keys->push_back(own);
    for (const Candidate& other : others) {
      if (seen >= threshold_ * total) break;
      keys->push_back(other.unit);
      seen += other.score;
    }
    std::sort(keys->begin() + first, keys->end());
  }

  absl::Status CheckCall(TokenRange queries, int64_t kv_tokens) const override {
    if (queries.size() >= scored_tokens()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("pattern: ", name(), " is for prefill: ", queries.size(),
                     " queries; expected at least ", scored_tokens(), ", its stride"));
  }

 private:
  const double threshold_;
};

absl::StatusOr<Rules> ReadXAttention(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(
      auto values, reader.ReadArguments({{.name = "threshold", .required = true, .decimal = true},
                                         {"stride", 1, false},
                                         {"block", 1, false}}));
  if (!values[1].given) values[1].numbers = {kStrideDefault};
  if (!values[2].given) values[2].numbers = {kBlockDefault};
  const int64_t stride = values[1].number(), block = values[2].number();
  if (kBlockTokens % stride != 0) {
    return reader.Refuse(values[1].at, absl::StrCat("a divisor of ", kBlockTokens),
                         absl::StrCat(stride));
  }
  ANNULUS_RETURN_IF_ERROR(CheckUnit(reader, values[2]));
  if (block % stride != 0) {
    return reader.Refuse(values[2].at, absl::StrCat("a multiple of stride, ", stride),
                         absl::StrCat(block));
  }
  return reader.RulesOfSelector(std::make_shared<XAttention>(values[0], stride, block));
}

}  // namespace

absl::Span<const PatternWord> XAttentionWords() {
  static constexpr PatternWord kWords[] = {
      {"xattention", "xattention(threshold[,stride=16][,block=128])",
       "the first block, its own one, and those of the highest antidiagonal sums up to a share of "
       "the softmax's weight; the same for a block of queries, by head; in prefill alone",
       "2503.16428 §2", "", ReadXAttention},
  };
  return kWords;
}

}  // namespace annulus
