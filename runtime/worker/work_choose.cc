// What a worker does that holds a context alone: it chooses keys by data and attends in one trip.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/has_list.h"
#include "base/status.h"
#include "runtime/context/layout.h"
#include "runtime/worker/work_runner.h"

namespace annulus {

// As the caller of several ranks merges their answers, of the one that has all.
absl::StatusOr<KeyListData> WorkRunner::ChooseAlone(const WorkerTask& task,
                                                    const wire::WorkItem& item,
                                                    const KvStore::Shard& shard,
                                                    const Selector& word, const Buffer& queries) {
  const ContextSpec& spec = shard.spec;
  const TensorView q =
      TensorView::Contiguous(queries.data(), spec.dtype, item.q_tokens, spec.heads, spec.head_dim);
  const Selection selection({.selector = &word,
                             .q = q,
                             .q_begin = item.q_start,
                             .heads = {0, spec.heads},
                             .group = spec.heads / spec.kv_heads,
                             .kv_tokens = item.kv_tokens},
                            shard.layout(item.layer, item.kv_tokens));
  ANNULUS_RETURN_IF_ERROR(selection.Check());
  Selection::Merge merge(selection, q, spec.dtype);
  if (selection.AnswerBytes(shard.rank) > 0) {
    ANNULUS_ASSIGN_OR_RETURN(const SelectKeys keys,
                             store_.KeysToSelect(item.storage_id, item.layer, item.kv_tokens,
                                                 PageSummary(word, spec.head_dim)));
    const Loops loops{backend_.pool(), TurnOf(task, item), task.cancel.get()};
    ANNULUS_ASSIGN_OR_RETURN(const Buffer answer,
                             selection.Answer(shard.rank, {&q, 1}, keys, loops));
    ANNULUS_RETURN_IF_ERROR(merge.Add(shard.rank, answer.span()));
  }
  return std::move(merge).Finish();
}

absl::Status WorkRunner::SetUpChoosing(const WorkerTask& task, const wire::WorkItem& item,
                                       const KvStore::Shard& shard, const KvTable& table,
                                       const Buffer& queries, BatchItem* to, Kept* kept) {
  const ContextSpec& spec = shard.spec;
  if (shard.world != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("chooses: set; expected a context of one rank, not of ", shard.world));
  }
  ANNULUS_RETURN_IF_ERROR(
      CheckQueryBytes(item, item.q_tokens * spec.heads * spec.head_dim, spec.dtype));
  // A backend that chooses knows the keys by their number alone.
  if (item.lists.empty() && item.keys == TokenRange{0, item.kv_tokens}) {
    ANNULUS_RETURN_IF_ERROR(SetUpAlone(item, shard, queries, to, kept));
    Complete(task, item, table, to);
    if (std::all_of(to->parts.begin(), to->parts.end(),
                    [&](const AttendArgs& part) { return backend_.Chooses(part); })) {
      return absl::OkStatus();
    }
    to->parts.clear();
  }
  std::vector<NumberedList> made;
  for (const auto& word : kept->pattern->selectors()) {
    if (HasList(item.lists, word->name())) continue;
    if (!word->by_units()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "chooses: ", word->name(), "; expected its list, or a word that chooses by units"));
    }
    ANNULUS_ASSIGN_OR_RETURN(KeyListData data, ChooseAlone(task, item, shard, *word, queries));
    made.push_back({word->name(), std::make_shared<const KeyListData>(std::move(data))});
  }
  ANNULUS_RETURN_IF_ERROR(BindLists(item, std::move(made), spec, kept));
  if (item.counts) {
    kept->size = SizeOf(ProblemOf(spec, shard.layout(item.layer, item.kv_tokens),
                                  {item.q_start, item.q_start + item.q_tokens}, item.kv_tokens,
                                  item.keys, *kept->pattern),
                        Stop([&] { return CheckInTime(task); }));
  }
  ANNULUS_RETURN_IF_ERROR(SetUpAlone(item, shard, queries, to, kept));
  Complete(task, item, table, to);
  return absl::OkStatus();
}

}  // namespace annulus
