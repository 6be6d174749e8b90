#include "runtime/coordinator/calls/item_selection.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/has_list.h"
#include "attention/stand_in.h"
#include "base/status.h"
#include "runtime/context/check_track.h"
#include "runtime/context/layout.h"

namespace annulus {

absl::Status CheckHoldsAllKeys(const ContextSpec& spec, const Selector& selector) {
  if (!spec.kv_efficient) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("pattern: ", selector.name(),
                   " chooses among all keys; expected none in a context that is kv_efficient"));
}

absl::StatusOr<std::unique_ptr<ItemSelection>> ItemSelection::Of(
    const ShardMap& map, const request::WorkItem& ask, std::shared_ptr<const Pattern> pattern,
    const std::vector<CallList>& given, const TensorView& q, float scale, bool has_index) {
  std::unique_ptr<ItemSelection> made;
  bool in_one_trip = map.world == 1;
  const ContextSpec& spec = map.spec;
  for (const auto& selector : pattern->selectors()) {
    if (HasList(given, selector->name())) continue;
    if (selector->by_column() != nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          "pattern: ", selector->name(),
          " chooses by the last queries of a prompt; expected an Attend or a Select with them, and "
          "in a step its list or another pattern"));
    }
    if (selector->index().has_value()) {
      in_one_trip = false;
      if (has_index) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("pattern: ", selector->name(),
                       " chooses by the rows of a track; expected its index queries (index) or its "
                       "list, which a Select in the track's layer makes"));
    }
    ANNULUS_RETURN_IF_ERROR(CheckHoldsAllKeys(spec, *selector));
    in_one_trip = in_one_trip && selector->by_units();
    if (made == nullptr) made.reset(new ItemSelection);
    const SelectRows rows{.selector = selector.get(),
                          .q = q,
                          .q_begin = ask.queries().begin,
                          .heads = {0, spec.heads},
                          .group = spec.heads / spec.kv_heads,
                          .kv_tokens = ask.kv_len(),
                          .scale = scale};
    ANNULUS_RETURN_IF_ERROR(made->Add(rows, map.layout(ask.layer, ask.kv_len()), spec.dtype));
  }
  if (made == nullptr) return made;
  made->in_one_trip_ = in_one_trip;
  made->pattern_ = std::move(pattern);
  return made;
}

absl::StatusOr<std::unique_ptr<ItemSelection>> ItemSelection::ByIndex(
    const ShardMap& map, const request::WorkItem& ask, std::shared_ptr<const Pattern> pattern,
    const std::vector<CallList>& given, const TensorView& q, const std::vector<float>& weights) {
  std::unique_ptr<ItemSelection> made;
  const auto heads = static_cast<int>(q.heads);
  for (const auto& selector : pattern->selectors()) {
    if (!selector->index().has_value() || HasList(given, selector->name())) continue;
    const Index& index = *selector->index();
    ANNULUS_RETURN_IF_ERROR(CheckTrack(*selector, map.SpecOf(ask.layer), map.RatioOf(ask.layer)));
    if (!index.weighs && heads != index.lists) {
      return absl::InvalidArgumentError(absl::StrCat("heads of q: ", heads, "; expected ",
                                                     index.lists, " index queries for ",
                                                     selector->name()));
    }
    const int64_t expected = index.weighs ? q.tokens * heads : 0;
    if (std::ssize(weights) != expected) {
      return absl::InvalidArgumentError(absl::StrCat("weights: ", weights.size(), "; expected ",
                                                     expected, " for ", selector->name()));
    }
    if (made == nullptr) made.reset(new ItemSelection);
    const SelectRows rows{.selector = selector.get(),
                          .q = q,
                          .q_begin = ask.queries().begin,
                          .heads = {0, index.lists},
                          .group = index.lists / index.heads,
                          .kv_tokens = ask.kv_len()};
    const Layout layout = map.layout(ask.layer, map.RowsOf(ask.layer, ask.kv_len()));
    ANNULUS_RETURN_IF_ERROR(made->Add(rows, layout, q.dtype));
  }
  if (made != nullptr) made->pattern_ = std::move(pattern);
  return made;
}

absl::Status ItemSelection::Add(const SelectRows& rows, const Layout& layout, DType dtype) {
  names_.push_back(rows.selector->name());
  const Selection& selection = selections_.emplace_back(rows, layout);
  dtype_ = dtype;
  return selection.Check();
}

std::vector<CallList> ItemSelection::StandIns() const {
  std::vector<CallList> lists;
  for (const Selection& selection : selections_) {
    const SelectRows& rows = selection.rows();
    KeyListData data = StandInFor(*rows.selector, rows.queries(), rows.kv_tokens);
    lists.push_back({rows.selector->name(), std::make_shared<const KeyListData>(std::move(data))});
  }
  return lists;
}

void ItemSelection::MakeMerges() {
  if (!merges_.empty()) return;
  for (const Selection& selection : selections_) {
    merges_.emplace_back(selection, selection.rows().q, dtype_);
  }
}

int64_t ItemSelection::AnswerBytes(int rank) const {
  int64_t bytes = 0;
  for (const Selection& selection : selections_) bytes += selection.AnswerBytes(rank);
  return bytes;
}

absl::Status ItemSelection::Add(int rank, absl::Span<const std::byte> answer) {
  MakeMerges();
  for (size_t i = 0; i < selections_.size(); ++i) {
    const auto bytes = static_cast<size_t>(selections_[i].AnswerBytes(rank));
    ANNULUS_RETURN_IF_ERROR(merges_[i].Add(rank, answer.subspan(0, bytes)));
    answer.remove_prefix(std::min(bytes, answer.size()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<CallList>> ItemSelection::TakeLists() {
  MakeMerges();  // no rank may have had anything to answer
  std::vector<CallList> lists;
  for (size_t i = 0; i < merges_.size(); ++i) {
    ANNULUS_ASSIGN_OR_RETURN(KeyListData data, std::move(merges_[i]).Finish());
    lists.push_back({names_[i], std::make_shared<const KeyListData>(std::move(data))});
  }
  return lists;
}

}  // namespace annulus
