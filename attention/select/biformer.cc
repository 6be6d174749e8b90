// biformer(region[,topk=4]): bi-level routing attention (BiFormer, 2303.08810 §3.2).
//
// Tokens are those of regions of an image, one region after the other, `region` tokens each, as the
// caller orders them. A region scores every region by the dot product of its mean query with the
// other's mean key, over the channels of all heads, and its queries see the topk regions of the
// highest scores, whole, the lower first of equal ones: no order of tokens is meant, later regions
// are seen as earlier ones are, and the own one counts like any other. All heads see the same. Mean
// queries and keys are rounded to f32, and so is a score of a head and the mean of the heads'.
//
// The paper's image has 7 × 7 regions, of 64, 16, 4 and 1 tokens by stage, and topk is 1, 4, 16 and
// all. Regions lie at multiples of `region`, and kv_len has whole ones. Of a region of which a call
// does not bring all queries the mean is that of those it brings.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "attention/patterns/word.h"
#include "attention/row_selector.h"
#include "attention/select/top_units.h"
#include "attention/select/unit_argument.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int64_t kTopkDefault = 4;

class BiFormer final : public RowSelector {
 public:
  BiFormer(int64_t region, int64_t topk)
      : RowSelector(absl::StrCat("biformer(", region, ",", topk, ")"), Summary::kMean, region, topk,
                    {.lists = Lists::kOne,
                     .row_tokens = region,
                     .group_tokens = region,
                     .scored_tokens = region,
                     .causal = false}) {}

  int64_t UnitsEnd(int64_t last, int64_t kv_tokens) const override {
    return kv_tokens / unit_tokens();
  }

  void ExpandGroup(absl::Span<const float> q, int64_t missing, int dim, double* to) const override {
    const auto count = static_cast<double>(q.size() / static_cast<size_t>(dim));
    std::fill(to, to + dim, 0.0);
    for (size_t i = 0; i < q.size(); ++i) to[i % static_cast<size_t>(dim)] += q[i];
    for (int c = 0; c < dim; ++c) to[c] = static_cast<float>(to[c] / count);
  }

  void Pick(const RowScores& row, std::vector<int32_t>* keys) const override {
    TopUnits top(picks());
    for (int64_t unit = 0; unit < row.units; ++unit) {
      double sum = 0;
      for (int64_t head = 0; head < row.heads; ++head) sum += row.Of(head, 0)[unit];
      const auto mean = static_cast<float>(sum / static_cast<double>(row.heads));  // f32 holds it
      top.Offer({mean, static_cast<int32_t>(unit)});
    }
    const auto first = static_cast<int64_t>(keys->size());
    for (const Candidate& seen : std::move(top).Take()) keys->push_back(seen.unit);
    std::sort(keys->begin() + first, keys->end());
  }

  absl::Status CheckCall(TokenRange queries, int64_t kv_tokens) const override {
    if (kv_tokens % unit_tokens() == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("pattern: ", name(), ": ", kv_tokens,
                                                   " keys; expected whole regions, a multiple of ",
                                                   unit_tokens()));
  }
};

absl::StatusOr<Rules> ReadBiFormer(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(auto values,
                           reader.ReadArguments({{"region", 1, true}, {"topk", 1, false}}));
  if (!values[1].given) values[1].numbers = {kTopkDefault};
  ANNULUS_RETURN_IF_ERROR(CheckUnit(reader, values[0]));
  ANNULUS_RETURN_IF_ERROR(CheckPicks(reader, values[1]));
  return reader.RulesOfSelector(std::make_shared<BiFormer>(values[0].number(), values[1].number()));
}

}  // namespace

absl::Span<const PatternWord> BiFormerWords() {
  static constexpr PatternWord kWords[] = {
      {"biformer", "biformer(region[,topk=4])",
       "the topk regions of tokens whose mean key its region's mean query scores highest, over all "
       "heads' channels; the same for a region's queries and all heads, later regions too",
       "2303.08810 §3.2", "", ReadBiFormer},
  };
  return kWords;
}

}  // namespace annulus
