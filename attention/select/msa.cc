// msa(block,topk): MiniMax Sparse Attention's selection (2606.13392; MiniMax-M3).
//
// A token has one index key, a row of a track; a query brings one index query for each KV head,
// data of the call. A block of `block` tokens scores as its best token does, S_b = max q·k_i over
// the i of the block. Each query and KV head sees its own block up to itself, which counts among
// the topk, and the topk − 1 highest of those before it, whole. Prefill and decode are the same.
//
// The model's block and topk: 128 and 16. A factor of the scores changes no choice. The blocks at
// the context's begin that some configurations force are a word of their own beside this one:
// msa(128,16) | sink(128), which then do not count among the topk. Read from the notes of two
// implementations; the authors' own code could not be verified.
#include "absl/strings/str_cat.h"
#include "attention/patterns/word.h"
#include "attention/select/unit_argument.h"
#include "attention/selector.h"
#include "base/status.h"

namespace annulus {
namespace {

class Msa final : public Selector {
 public:
  Msa(int64_t block, int64_t topk, int kv_heads)
      : Selector(absl::StrCat("msa(", block, ",", topk, ")"), Index{.lists = kv_heads}, block,
                 topk) {}
};

absl::StatusOr<Rules> ReadMsa(PatternReader& reader) {
  ANNULUS_ASSIGN_OR_RETURN(const auto values,
                           reader.ReadArguments({{"block", 1, true}, {"topk", 1, true}}));
  ANNULUS_RETURN_IF_ERROR(CheckUnit(reader, values[0]));
  ANNULUS_RETURN_IF_ERROR(CheckPicks(reader, values[1]));
  return reader.RulesOfSelector(
      std::make_shared<Msa>(values[0].number(), values[1].number(), reader.kv_heads()));
}

}  // namespace

absl::Span<const PatternWord> MsaWords() {
  static constexpr PatternWord kWords[] = {
      {"msa", "msa(block,topk)",
       "its own block up to itself, and the topk - 1 whole blocks before it of which an index, a "
       "track's rows, scores a token highest, by query and KV head",
       "2606.13392", "", ReadMsa},
  };
  return kWords;
}

}  // namespace annulus
