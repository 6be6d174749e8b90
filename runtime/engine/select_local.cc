#include "runtime/engine/select_local.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/has_list.h"
#include "base/status.h"
#include "runtime/engine/columns_local.h"
#include "runtime/engine/selection.h"

namespace annulus {

absl::StatusOr<std::vector<NamedList>> SelectLocally(const Pattern& pattern,
                                                     absl::Span<const NamedList> given,
                                                     const Layout& layout, const TensorView& q,
                                                     int64_t q_begin, const TensorView& k,
                                                     ThreadPool* pool, float scale,
                                                     const std::atomic<bool>* cancel) {
  const Loops loops{pool, {}, cancel};
  std::vector<NamedList> lists;
  const KvTable table = KvTable::FromTensors(k, k);
  for (const auto& selector : pattern.selectors()) {
    if (HasList(given, selector->name())) continue;
    if (selector->index().has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "pattern: ", selector->name(), " chooses by the rows of a track; expected its list"));
    }
    if (const ColumnSelector* const by_column = selector->by_column()) {
      const float factor = scale != 0 ? scale : 1 / std::sqrt(static_cast<float>(k.dim));
      ANNULUS_ASSIGN_OR_RETURN(KeyListData data,
                               PickLocally(*by_column, layout, q, q_begin, k, factor, loops));
      ANNULUS_ASSIGN_OR_RETURN(auto list, KeyList::Make(std::move(data)));
      lists.push_back({selector->name(), std::move(list)});
      continue;
    }
    const SelectRows rows{.selector = selector.get(),
                          .q = q,
                          .q_begin = q_begin,
                          .heads = {0, static_cast<int>(q.heads)},
                          .group = static_cast<int>(q.heads / k.heads),
                          .kv_tokens = k.tokens,
                          .scale = scale};
    const Selection selection(rows, layout);
    ANNULUS_RETURN_IF_ERROR(selection.Check());
    Selection::Merge merge(selection, q, q.dtype);
    for (int rank = 0; rank < layout.world(); ++rank) {
      std::vector<TensorView> of_rank;
      for (const HeadRange& heads : layout.QueryHeads(rank)) {
        of_rank.push_back(q.Heads(heads.first, heads.count));
      }
      ANNULUS_ASSIGN_OR_RETURN(const Buffer answer,
                               selection.Answer(rank, of_rank, {.kv = &table}, loops));
      ANNULUS_RETURN_IF_ERROR(merge.Add(rank, answer.span()));
    }
    ANNULUS_ASSIGN_OR_RETURN(KeyListData data, std::move(merge).Finish());
    ANNULUS_ASSIGN_OR_RETURN(auto list, KeyList::Make(std::move(data)));
    lists.push_back({selector->name(), std::move(list)});
  }
  return lists;
}

}  // namespace annulus
