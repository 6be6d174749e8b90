// dsa(topk): the lightning indexer of DeepSeek Sparse Attention (DeepSeek-V3.2, 2512.02556 §2.1;
// GLM-5 uses it too, and its IndexShare lets the next layers see what one has chosen).
//
// A token s has one index key k_s, a row of a track; a query t brings index queries q_{t,j} and
// weights w_{t,j}, data of the call, and scores I_{t,s} = Σ_j w_{t,j}·max(0, q_{t,j}·k_s). It sees
// the topk tokens of the highest scores among those up to itself, all of them while there are no
// more; all heads see the same. Its own token counts like any other. Prefill and decode are the
// same.
//
// The models' topk: 2048, with 64 index heads of 128. Positions, rotations and factors as 1/√d are
// the caller's: they are in the queries, keys and weights that it brings. FP8 index keys are kept
// as bf16 or f16, which have all their values; their block scales multiply them before.
#include "absl/strings/str_cat.h"
#include "attention/patterns/word.h"
#include "attention/select/unit_argument.h"
#include "attention/selector.h"
#include "base/status.h"

namespace annulus {
namespace {

class Dsa final : public Selector {
 public:
  explicit Dsa(int64_t topk)
      : Selector(absl::StrCat("dsa(", topk, ")"),
                 Index{.lists = 1, .weighs = true, .own_unit = false}, /*unit_tokens=*/1, topk) {}
};

absl::StatusOr<Rules> ReadDsa(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values, reader.ReadArguments({{"topk", 1, true}}));
  ANNULUS_RETURN_IF_ERROR(CheckPicks(reader, values[0]));
  return reader.RulesOfSelector(std::make_shared<Dsa>(values[0].number()));
}

}  // namespace

absl::Span<const PatternWord> DsaWords() {
  static constexpr PatternWord kWords[] = {
      {"dsa", "dsa(topk)",
       "the topk tokens up to itself that an index of several heads, a track's rows and weights "
       "of the call, scores highest, the same for all heads",
       "2512.02556 §2.1", "", ReadDsa},
  };
  return kWords;
}

}  // namespace annulus
