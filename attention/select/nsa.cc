// nsa(topk[,block=64]): the selected branch of Native Sparse Attention (2502.11089 §3.3.2).
//
// A query head weighs the complete blocks of `block` tokens up to its query by the softmax of
// q · mean of the block's keys, times the call's scale. The weights of the query heads of a KV head
// are summed, and these heads see the topk − 1 blocks of the highest sums before the query's own
// one, whole; of the own block, which counts among the topk, they see the keys up to the query. A
// sum is rounded to f32; the lower block comes first of equal ones. Prefill and decode are the
// same.
//
// The published kernels' topk and block: 16 and 64, with means for the model's learned compression
// of keys. The paper forces the first block and the one before the own one, too: that is
// nsa(14) | sink(64) | band(64,2), which then do not count among the topk. The compressed branch,
// the window and the gates of the three are the caller's: attends of their own that are blended.
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

class Nsa final : public RowSelector {
 public:
  Nsa(int64_t topk, int64_t block)
      : RowSelector(absl::StrCat("nsa(", topk, ",", block, ")"), Summary::kMean, block, topk,
                    {.lists = Lists::kKvHeads, .scored_tokens = block}) {}

  // The own block is weighed, too, where it is complete.
  int64_t UnitsEnd(int64_t last, int64_t kv_tokens) const override {
    return (std::min(last, kv_tokens - 1) + 1) / unit_tokens();
  }

  void Pick(const RowScores& row, std::vector<int32_t>* keys) const override {
    const auto units = static_cast<size_t>(row.units);
    std::vector<double> weights(units), sums(units);
    for (int64_t head = 0; head < row.heads; ++head) {
      Softmax({row.Of(head, 0), units}, row.scale, absl::MakeSpan(weights));
      for (size_t u = 0; u < units; ++u) sums[u] += weights[u];
    }
    const auto own = static_cast<int32_t>(OwnUnit(row.queries.begin, row.kv_tokens));
    TopUnits top(picks() - 1);
    for (int32_t u = 0; u < own; ++u) top.Offer({static_cast<float>(sums[u]), u});
    const auto first = static_cast<int64_t>(keys->size());
    for (const Candidate& seen : std::move(top).Take()) keys->push_back(seen.unit);
    std::sort(keys->begin() + first, keys->end());
    keys->push_back(own);
  }
};

absl::StatusOr<Rules> ReadNsa(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(auto values,
                           reader.ReadArguments({{"topk", 1, true}, {"block", 1, false}}));
  if (!values[1].given) values[1].numbers = {kBlockDefault};
  ANNULUS_RETURN_IF_ERROR(CheckPicks(reader, values[0]));
  ANNULUS_RETURN_IF_ERROR(CheckUnit(reader, values[1]));
  return reader.RulesOfSelector(std::make_shared<Nsa>(values[0].number(), values[1].number()));
}

}  // namespace

absl::Span<const PatternWord> NsaWords() {
  static constexpr PatternWord kWords[] = {
      {"nsa", "nsa(topk[,block=64])",
       "its own block up to itself, and the topk - 1 whole blocks before it to whose mean keys the "
       "query heads of a KV head give the most weight in sum, by query and KV head",
       "2502.11089 §3.3.2", "", ReadNsa},
  };
  return kWords;
}

}  // namespace annulus
