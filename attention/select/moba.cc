// moba(block,topk): Mixture of Block Attention (2502.13189 §2.2; FlashMoBA, 2511.11571 §2).
//
// Each query token and head scores every complete block of `block` tokens before its own one by
// s = q · mean of the block's keys, unscaled, and sees the topk − 1 highest, whole; of its own
// block, which counts among the topk, it sees the keys up to itself. topk = 1 is the own block
// alone. Keys are as they are stored, positions applied. Prefill and decode are the same.
//
// The papers' block and topk: 512 and 3; 4096 and 12 at a million tokens, which could not be
// verified in code. FlashMoBA's convolution of keys is the caller's.
#include "absl/strings/str_cat.h"
#include "attention/patterns/word.h"
#include "attention/select/unit_argument.h"
#include "attention/selector.h"
#include "base/status.h"

namespace annulus {
namespace {

class Moba final : public Selector {
 public:
  Moba(int64_t block, int64_t topk)
      : Selector(absl::StrCat("moba(", block, ",", topk, ")"), Summary::kMean, block, topk) {}
};

absl::StatusOr<Rules> ReadMoba(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values,
                           reader.ReadArguments({{"block", 1, true}, {"topk", 1, true}}));
  ANNULUS_RETURN_IF_ERROR(CheckUnit(reader, values[0]));
  ANNULUS_RETURN_IF_ERROR(CheckPicks(reader, values[1]));
  return reader.RulesOfSelector(std::make_shared<Moba>(values[0].number(), values[1].number()));
}

}  // namespace

absl::Span<const PatternWord> MobaWords() {
  static constexpr PatternWord kWords[] = {
      {"moba", "moba(block,topk)",
       "its own block up to itself, and the topk - 1 whole blocks before it whose mean key scores "
       "highest, by query and head",
       "2502.13189 §2.2, 2511.11571", "", ReadMoba},
  };
  return kWords;
}

}  // namespace annulus
