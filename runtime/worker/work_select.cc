// What a worker does for keys chosen by data.
#include <algorithm>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/context/check_track.h"
#include "runtime/context/layout.h"
#include "runtime/engine/wire_rows.h"
#include "runtime/worker/work_runner.h"

namespace annulus {

absl::StatusOr<Buffer> WorkRunner::SelectByIndex(const wire::WorkItem& item,
                                                 const KvStore::Shard& shard,
                                                 const std::shared_ptr<const Selector>& word,
                                                 const Buffer& queries, const Loops& loops) {
  if (!word->index().has_value() || item.index_heads < 1) {
    return absl::InvalidArgumentError("select: a track's layer; expected words and queries of one");
  }
  const ContextSpec& track = shard.SpecOf(item.layer);
  const TensorView q = TensorView::Contiguous(queries.data(), track.dtype, item.q_tokens,
                                              item.index_heads, track.head_dim);
  const int64_t weights = word->index()->weighs ? item.q_tokens * item.index_heads : 0;
  const size_t q_bytes = static_cast<size_t>(q.size()) * SizeOf(track.dtype);
  if (queries.size() != q_bytes + static_cast<size_t>(weights) * sizeof(float) ||
      (weights == 0 && item.index_heads != word->index()->lists)) {
    return absl::DataLossError(absl::StrCat("an item brought ", queries.size(),
                                            " bytes of index queries, which are not what ",
                                            word->name(), " needs"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckTrack(*word, track, RatioOf(shard.spec, item.layer)));
  const int64_t rows = RowsOf(shard.spec, item.layer, item.kv_tokens);
  const int lists = word->index()->lists;
  const Selection selection({.selector = word.get(),
                             .q = q,
                             .q_begin = item.q_start,
                             .heads = {0, lists},
                             .group = lists / word->index()->heads,
                             .kv_tokens = item.kv_tokens},
                            shard.layout(item.layer, rows));
  ANNULUS_RETURN_IF_ERROR(selection.Check());
  if (selection.AnswerBytes(shard.rank) == 0) return Buffer();
  ANNULUS_ASSIGN_OR_RETURN(const SelectKeys keys,
                           store_.RowsToSelect(item.storage_id, item.layer, rows));
  std::vector<float> of_queries(static_cast<size_t>(weights));
  if (weights > 0) {
    std::memcpy(of_queries.data(), queries.data() + q_bytes, of_queries.size() * sizeof(float));
  }
  return selection.AnswerByIndex(shard.rank, q, weights > 0 ? of_queries.data() : nullptr, keys,
                                 loops);
}

absl::Status WorkRunner::Select(const WorkerTask& task, const wire::WorkItem& item,
                                const KvStore::Shard& shard, const Pattern& pattern,
                                const Buffer& queries, BatchItem* to) {
  const ContextSpec& spec = shard.spec;
  const Loops loops{backend_.pool(), TurnOf(task, item), task.cancel.get()};
  const bool by_index = item.layer >= spec.layers;
  const Layout layout = shard.layout(item.layer, item.kv_tokens);
  std::vector<TensorView> q;  // by range of heads
  const std::byte* at = queries.data();
  int64_t elements = 0;
  for (const HeadRange& heads : by_index ? HeadRanges() : layout.QueryHeads(shard.rank)) {
    q.push_back(TensorView::Contiguous(at, spec.dtype, item.q_tokens, heads.count, spec.head_dim));
    elements += q.back().size();
    at += static_cast<size_t>(q.back().size()) * SizeOf(spec.dtype);
  }
  if (!by_index) ANNULUS_RETURN_IF_ERROR(CheckQueryBytes(item, elements, spec.dtype));
  const TensorView all =
      TensorView::Contiguous(nullptr, spec.dtype, item.q_tokens, spec.heads, spec.head_dim);
  std::vector<Buffer> answers;
  for (const std::string& name : item.select) {
    const auto& words = pattern.selectors();
    const auto word = std::find_if(words.begin(), words.end(),
                                   [&](const auto& one) { return one->name() == name; });
    if (word == words.end() || (*word)->by_column() != nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("select: ", absl::CHexEscape(name),
                       "; expected a word of the pattern that chooses by units"));
    }
    if (by_index) {
      ANNULUS_ASSIGN_OR_RETURN(answers.emplace_back(),
                               SelectByIndex(item, shard, *word, queries, loops));
      continue;
    }
    const Selection selection({.selector = word->get(),
                               .q = all,
                               .q_begin = item.q_start,
                               .heads = {0, spec.heads},
                               .group = spec.heads / spec.kv_heads,
                               .kv_tokens = item.kv_tokens},
                              layout);
    ANNULUS_RETURN_IF_ERROR(selection.Check());
    ANNULUS_ASSIGN_OR_RETURN(
        const SelectKeys keys,
        store_.KeysToSelect(item.storage_id, item.layer, item.kv_tokens,
                            PageSummary(**word, static_cast<int>(spec.head_dim))));
    ANNULUS_ASSIGN_OR_RETURN(answers.emplace_back(), selection.Answer(shard.rank, q, keys, loops));
  }
  to->answer = answers.size() == 1 ? std::move(answers[0]) : Join(answers);
  return absl::OkStatus();
}

}  // namespace annulus
