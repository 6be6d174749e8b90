// quest(budget[,page=16]): query-aware page selection (2406.10774 §3.2).
//
// Each query token and head scores every complete page of `page` tokens before its own one by the
// largest product that a key within the page's bounds could have, s = Σ_c max(q_c·min_c, q_c·max_c)
// over the least and the largest of each dim, and sees the max(3, budget / page) − 1 highest,
// whole; of its own page, which counts among them, it sees the keys up to itself.
//
// The paper chooses in decode only, and leaves the first two layers dense: that is the caller's, a
// pattern for each layer. That the own page is always seen follows the kernels that were published
// with it; whether it does in every path of that code could not be verified.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "attention/patterns/word.h"
#include "attention/select/unit_argument.h"
#include "attention/selector.h"
#include "base/status.h"

namespace annulus {
namespace {

constexpr int64_t kPageDefault = 16;
constexpr int64_t kPagesMin = 3;

class Quest final : public Selector {
 public:
  Quest(int64_t budget, int64_t page)
      : Selector(absl::StrCat("quest(", budget, ",", page, ")"), Summary::kMinMax, page,
                 std::max(kPagesMin, budget / page)) {}

  // max(q·min, q·max) is q·min for a negative q, else q·max.
  void Expand(const float* q, int dim, double* to) const override {
    for (int c = 0; c < dim; ++c) {
      to[c] = q[c] < 0 ? q[c] : 0;
      to[dim + c] = q[c] < 0 ? 0 : q[c];
    }
  }
};

absl::StatusOr<Rules> ReadQuest(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(auto values,
                           reader.ReadArguments({{"budget", 1, true}, {"page", 1, false}}));
  if (!values[1].given) values[1].numbers = {kPageDefault};
  ANNULUS_RETURN_IF_ERROR(CheckUnit(reader, values[1]));
  ANNULUS_RETURN_IF_ERROR(CheckPicks(reader, values[0]));
  return reader.RulesOfSelector(std::make_shared<Quest>(values[0].number(), values[1].number()));
}

}  // namespace

absl::Span<const PatternWord> QuestWords() {
  static constexpr PatternWord kWords[] = {
      {"quest", "quest(budget[,page=16])",
       "its own page up to itself, and the whole pages before it whose bounds allow the largest "
       "products, budget tokens in all and 3 pages at least, by query and head",
       "2406.10774 §3.2", "", ReadQuest},
  };
  return kWords;
}

}  // namespace annulus
