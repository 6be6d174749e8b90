// seer(budget[,block=64]) or seer(threshold=x[,block=64]): SeerAttention by given gates
// (2410.13276; a choice of each query token's own and the budget are SeerAttention-R's,
// 2506.08889).
//
// A model's learned gate makes of each block of `block` keys one gate key for each KV head, and of
// each query one gate query for each KV head. Gate keys are a track of so many heads with a row for
// `block` tokens, gate queries are a call's index queries, [n, kv_heads, dim]: pooling, projection
// and rotation at a block's begin are the model's. A gate query weighs the complete blocks up to
// its query by the softmax of its products with their gate keys / √dim. The query heads of the KV
// head see, whole, of the blocks before the query's own one
//   budget:    the max(1, budget / block) − 1 highest, the lower first of equal ones,
//   threshold: those that weigh more than it, weights rounded to f32,
// and of the own block, which counts among the former, the keys up to the query. Prefill and decode
// are the same.
//
// The published code chooses for 64 queries together in prefill, by a gate query that their mean
// makes: such queries are the same row for each of the 64. There the last block of a prompt has a
// gate key before it is complete; here its keys are its own queries' alone, which see them always.
// Published: block 64, threshold 0.002 (0.0005 to 0.005), budget 4,096.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "attention/patterns/word.h"
#include "attention/row_selector.h"
#include "attention/select/softmax.h"
#include "attention/select/top_units.h"
#include "attention/select/unit_argument.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int64_t kBlockDefault = 64;

class Seer final : public RowSelector {
 public:
  Seer(const PatternReader::Value& budget, int64_t block, const PatternReader::Value& threshold,
       int kv_heads)
      : RowSelector(NameOf(budget, block, threshold),
                    Index{.lists = kv_heads, .heads = kv_heads, .ratio = block}, block,
                    budget.given ? std::max<int64_t>(1, budget.number() / block) : kListKeysMax,
                    {.lists = Lists::kKvHeads, .scored_tokens = 1}),
        by_budget_(budget.given),
        threshold_(static_cast<float>(threshold.decimal())) {}

  int64_t UnitsEnd(int64_t last, int64_t kv_tokens) const override {
    return (std::min(last, kv_tokens - 1) + 1) / unit_tokens();
  }

  void Pick(const RowScores& row, std::vector<int32_t>* keys) const override {
    const auto own = static_cast<int32_t>(OwnUnit(row.queries.begin, row.kv_tokens));
    const auto first = static_cast<int64_t>(keys->size());
    if (by_budget_) {
      TopUnits top(picks() - 1);
      for (int32_t u = 0; u < own; ++u) top.Offer({row.Of(0, 0)[u], u});
      for (const Candidate& seen : std::move(top).Take()) keys->push_back(seen.unit);
      std::sort(keys->begin() + first, keys->end());
    } else {
      const auto units = static_cast<size_t>(row.units);
      std::vector<double> weights(units);
      Softmax({row.Of(0, 0), units}, row.scale, absl::MakeSpan(weights));
      for (int32_t u = 0; u < own; ++u) {
        if (static_cast<float>(weights[static_cast<size_t>(u)]) > threshold_) keys->push_back(u);
      }
    }
    keys->push_back(own);
  }

 private:
  static std::string NameOf(const PatternReader::Value& budget, int64_t block,
                            const PatternReader::Value& threshold) {
    if (budget.given) return absl::StrCat("seer(", budget.number(), ",", block, ")");
    return absl::StrCat("seer(threshold=", threshold.DecimalText(), ",block=", block, ")");
  }

  const bool by_budget_;
  const float threshold_;
};

absl::StatusOr<Rules> ReadSeer(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(auto values,
                           reader.ReadArguments({{.name = "budget", .least = 1},
                                                 {.name = "block", .least = 1},
                                                 {.name = "threshold", .decimal = true}}));
  if (!values[1].given) values[1].numbers = {kBlockDefault};
  ANNULUS_RETURN_IF_ERROR(CheckUnit(reader, values[1]));
  if (values[0].given == values[2].given) {
    return reader.Refuse(values[0].at, "either budget or threshold",
                         values[0].given ? "both" : "neither");
  }
  if (values[0].given) ANNULUS_RETURN_IF_ERROR(CheckPicks(reader, values[0]));
  return reader.RulesOfSelector(
      std::make_shared<Seer>(values[0], values[1].number(), values[2], reader.kv_heads()));
}

}  // namespace

absl::Span<const PatternWord> SeerWords() {
  static constexpr PatternWord kWords[] = {
      {"seer", "seer(budget[,block=64] or threshold=x[,block=64])",
       "its own block up to itself, and the whole blocks before it whose gate keys, a track's "
       "rows, "
       "a gate scores highest, budget tokens in all, or weighs more than threshold, by query and "
       "KV head",
       "2410.13276, 2506.08889", "", ReadSeer},
  };
  return kWords;
}

}  // namespace annulus
