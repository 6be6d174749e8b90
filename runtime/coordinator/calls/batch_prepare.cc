// What a BatchCall does once it is admitted: each item is checked, planned or made a selection, and
// all are packed.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/attend_args.h"
#include "attention/finish.h"
#include "base/secret.h"
#include "base/status.h"
#include "runtime/context/check_tensor.h"
#include "runtime/context/layout.h"
#include "runtime/coordinator/calls/batch_call.h"
#include "runtime/coordinator/calls/index_item.h"

namespace annulus {
namespace {

using Kind = request::WorkItem::Kind;

absl::Status CheckStepAnswer(const ContextSpec& spec, const TensorView& q) {
  const auto bytes = static_cast<int64_t>(PartialBytes(q.tokens, spec.heads, spec.v_head_dim));
  if (bytes <= kStepAnswerBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tokens of q: ", q.tokens, " with an answer of ", bytes, " bytes; expected at most ",
      kStepAnswerBytesMax, ": use Attend for so many queries"));
}

absl::Status CheckAttendable(const ContextSpec& spec, int layer, bool selects_only) {
  if (layer < spec.layers || selects_only) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layer: ", layer, ", a track's; expected 0 to ",
                                                 spec.layers - 1, " for queries to attend to"));
}

absl::Status CheckWeights(const std::vector<float>& weights) {
  const auto bad = std::find_if(weights.begin(), weights.end(),
                                [](float weight) { return !std::isfinite(weight); });
  if (bad == weights.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("weights[", bad - weights.begin(), "]: not finite; expected finite values"));
}

bool IsRefused(const PreparedCall& prepared, size_t index) {
  return std::any_of(prepared.refused.begin(), prepared.refused.end(),
                     [index](const auto& refused) { return refused.first == index; });
}

}  // namespace

absl::Status BatchCall::PrepareIndex(const CallItem& wanted, Item& item) {
  const request::WorkItem& ask = wanted.ask;
  const ShardMap& map = *item.admitted->map;
  ANNULUS_RETURN_IF_ERROR(CheckAttendable(map.spec, ask.layer, wanted.selects_only));
  if (ask.k_tokens > 0 && map.RatioOf(ask.layer) > 1) {
    return absl::InvalidArgumentError(
        "layer: a step of the same call appends to it; expected none where a row stands for "
        "several tokens");
  }
  if (wanted.scale != 0 && !wanted.is_index) {
    return absl::InvalidArgumentError(
        absl::StrCat("scale: ", wanted.scale, "; expected 0 in a track's layer"));
  }
  const ContextSpec& track = map.SpecOf(ask.layer);
  ANNULUS_RETURN_IF_ERROR(CheckTensor("q", wanted.q, wanted.q.heads, track.head_dim, track.dtype));
  ANNULUS_RETURN_IF_ERROR(CheckWeights(*wanted.weights));
  ANNULUS_ASSIGN_OR_RETURN(std::shared_ptr<const Pattern> pattern,
                           planner_.PatternFor(map, wanted.pattern_layer, *wanted.pattern));
  ANNULUS_ASSIGN_OR_RETURN(
      item.selection, ItemSelection::ByIndex(map, ask, std::move(pattern), *wanted.lists, wanted.q,
                                             *wanted.weights));
  if (item.selection != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "pattern: no word chooses keys by the rows of a track; expected one that does, as dsa or "
      "msa, and has no list");
}

absl::Status BatchCall::PrepareItem(const CallItem& wanted, Item& item) {
  const request::WorkItem& ask = wanted.ask;
  const ShardMap& map = *item.admitted->map;
  const ContextSpec& spec = map.spec;
  if (wanted.index_refused != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("index: ", wanted.index_refused));
  }
  const bool appends_rows = ask.kind != Kind::kAttend;
  item.layout.emplace(
      map.layout(ask.layer, appends_rows ? ask.kv_len() : map.RowsOf(ask.layer, ask.kv_len())));
  if (item.admitted->appends) {
    ANNULUS_RETURN_IF_ERROR(CheckKv(map.SpecOf(ask.layer), wanted.k, wanted.v));
  }
  if (!item.admitted->attends) return absl::OkStatus();
  if (ask.layer >= spec.layers || wanted.is_index) {
    const absl::Status status = PrepareIndex(wanted, item);
    if (!wanted.is_index) return status;
    if (!item.admitted->appends) return OfIndex(status);
    item.index_status = OfIndex(status);  // what is appended has nothing to do with it
    return absl::OkStatus();
  }
  ANNULUS_RETURN_IF_ERROR(CheckTensor("q", wanted.q, spec.heads, spec.head_dim, spec.dtype));
  if (wanted.weights != nullptr && !wanted.weights->empty()) {
    return absl::InvalidArgumentError(absl::StrCat("weights: ", wanted.weights->size(),
                                                   "; expected none in a layer of the context"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckScale(wanted.scale));
  ANNULUS_RETURN_IF_ERROR(CheckSinks(*wanted.sinks, spec.heads));
  if (ask.kind == Kind::kStep) ANNULUS_RETURN_IF_ERROR(CheckStepAnswer(spec, wanted.q));
  ANNULUS_ASSIGN_OR_RETURN(std::shared_ptr<const Pattern> pattern,
                           planner_.PatternFor(map, ask.layer, *wanted.pattern));
  if (wanted.index != nullptr) {
    ANNULUS_RETURN_IF_ERROR(CheckIndexQueries(map, *wanted.index, wanted.q.tokens));
  }
  ANNULUS_ASSIGN_OR_RETURN(item.selection,
                           ItemSelection::Of(map, ask, std::move(pattern), *wanted.lists, wanted.q,
                                             wanted.scale, /*has_index=*/wanted.index != nullptr));
  std::vector<CallList> lists = *wanted.lists;
  if (item.selection != nullptr && item.selection->in_one_trip() && !wanted.selects_only) {
    const std::unique_ptr<ItemSelection> chosen = std::move(item.selection);
    item.chooses = true;
    item.choice_bytes = chosen->AnswerBytes(/*rank=*/0);
    for (CallList& list : chosen->StandIns()) {
      item.choice_bytes += list.data->size_bytes();
      lists.push_back(std::move(list));
    }
  }
  if (item.selection != nullptr || wanted.index_item.has_value()) return absl::OkStatus();
  if (wanted.selects_only) {
    return absl::InvalidArgumentError(
        "pattern: no word chooses keys by data; expected one in a Select, as quest or moba");
  }
  ANNULUS_ASSIGN_OR_RETURN(std::shared_ptr<const Planned> planned,
                           planner_.PlanFor(map, ask, *wanted.pattern, lists, wanted.plan, stop_));
  ANNULUS_RETURN_IF_ERROR(map.retention->CheckReads(ask.layer, item.admitted->horizon,
                                                    planned->plan.problem().pattern, ask.queries(),
                                                    ask.seen().end, stop_));
  item.planned = std::move(planned);
  if (item.planned->exchanges) item.channel = RandomSecret();
  item.merged = Partial(ask.q_tokens, spec.heads, spec.v_head_dim);
  return absl::OkStatus();
}

// By item. One whose index queries are refused, where another item has them, is refused too.
std::vector<absl::Status> BatchCall::PrepareItems() {
  std::vector<absl::Status> statuses(items_.size());
  for (size_t i = 0; i < items_.size(); ++i) {
    items_[i].admitted = &admit_.items[i];
    if (admit_.items[i].live()) statuses[i] = PrepareItem(wanted_[i], items_[i]);
  }
  for (size_t i = 0; i < items_.size(); ++i) {
    if (!wanted_[i].index_item.has_value()) continue;
    const size_t of = *wanted_[i].index_item;
    statuses[i].Update(OfIndex(admit_.items[of].status));
    statuses[i].Update(statuses[of]);
    statuses[i].Update(items_[of].index_status);
  }
  return statuses;
}

absl::StatusOr<PreparedCall> BatchCall::Prepare(const action::Admit& admit) {
  absl::Time begin = clock_.Now();
  admit_ = admit;
  items_.resize(admit_.items.size());
  parts_.resize(admit_.workers.size());
  forget_lists_.resize(admit_.workers.size());
  PreparedCall prepared;
  std::vector<absl::Status> statuses = PrepareItems();
  bool selects = false;
  for (size_t i = 0; i < items_.size(); ++i) {
    selects |= items_[i].selection != nullptr;
    if (!admit_.items[i].live() || statuses[i].ok()) continue;
    prepared.refused.emplace_back(i, std::move(statuses[i]));
  }
  for (size_t i = 0; i < items_.size(); ++i) {
    Item& item = items_[i];
    if (!item.layout.has_value() || IsRefused(prepared, i)) continue;
    // What ranks answer to a selection goes with no partials of theirs that others merge.
    item.merges_on_the_way = item.planned != nullptr && !item.planned->merging.empty() && !selects;
    ShareOut(i);
    if (item.merges_on_the_way) prepared.merging.push_back(i);
  }
  OnPhase("plan", begin);
  begin = clock_.Now();
  for (size_t rank = 0; rank < parts_.size(); ++rank) {
    if (parts_[rank].empty()) continue;
    ANNULUS_RETURN_IF_ERROR(stop_.status());
    const WorkerId worker = admit_.workers[rank];
    std::vector<size_t> items;
    for (const Part& part : parts_[rank]) {
      items.push_back(part.item);
      prepared.bytes += ChoiceBytesOf(part, worker);
    }
    forget_lists_[rank] = planner_.lists().ToForget(worker);
    prepared.messages.push_back(
        {{static_cast<int>(rank), std::move(items)}, Pack(rank, prepared.messages)});
  }
  OnPhase("pack queries", begin);
  return prepared;
}

}  // namespace annulus
