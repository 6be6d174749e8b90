#include "runtime/coordinator/calls/batch_call.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/attend_args.h"
#include "attention/finish.h"
#include "base/check.h"
#include "base/status.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/coordinator/calls/index_item.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/wire_rows.h"
#include "runtime/identity/peer_name.h"

namespace annulus {
namespace {

using Kind = request::WorkItem::Kind;

}  // namespace

CallItem::CallItem(const AppendRequest& request)
    : ask{request.context, request.layer, request.start, request.k.tokens,
          /*q_tokens=*/0,  request.key,   Kind::kAppend},
      k(request.k),
      v(request.v) {}

CallItem::CallItem(const AttendRequest& request)
    : ask{request.context, request.layer, request.kv_len,  /*k_tokens=*/0, request.q.tokens,
          /*key=*/{},      Kind::kAttend, request.q_start, KeysOf(request)},
      q(request.q),
      pattern(&request.pattern),
      lists(&request.lists),
      sinks(&request.sinks),
      plan(request.plan),
      scale(request.scale),
      pattern_layer(request.layer),
      index(request.index.q.tokens > 0 ? &request.index : nullptr) {}

CallItem::CallItem(const StepRequest& request)
    : ask{request.context,  request.layer, request.start, request.k.tokens,
          request.q.tokens, request.key,   Kind::kStep},
      k(request.k),
      v(request.v),
      q(request.q),
      pattern(&request.pattern),
      lists(&request.lists),
      sinks(&request.sinks),
      scale(request.scale),
      pattern_layer(request.layer),
      index(request.index.q.tokens > 0 ? &request.index : nullptr) {}

BatchCall::BatchCall(std::vector<CallItem> items, const CallContext& call, CallPlanner& planner,
                     const Clock& clock, Stop stop)
    : wanted_(std::move(items)),
      deadline_(call.deadline),
      traceparent_(ToTraceparent(call.trace)),
      tenant_(NumberOf(call.caller)),
      planner_(planner),
      clock_(clock),
      stop_(std::move(stop)) {}

request::Work BatchCall::request() const {
  request::Work work;
  work.items.reserve(wanted_.size());
  for (const CallItem& wanted : wanted_) work.items.push_back(wanted.ask);
  return work;
}

bool BatchCall::selects_by_index(const CallItem& wanted, const Item& item) {
  return item.selection != nullptr && wanted.ask.layer >= item.admitted->map->spec.layers;
}

// Every holder of a context hears of its append, also where it stores nothing of it, so that each
// knows the layer's length and a gap cannot go unnoticed. Queries go to one holder of each rank
// that takes part, as one does that chooses: it is planned by keys that stand for the chosen ones.
void BatchCall::ShareOut(size_t index) {
  const Item& item = items_[index];
  const ShardMap& map = *item.admitted->map;
  const absl::Span<const Holder> receivers = map.Receivers(item.admitted->appends);
  for (size_t i = 0; i < receivers.size(); ++i) {
    Part part{index, receivers[i].rank};
    const auto rank = static_cast<size_t>(part.rank);
    part.reads = i < static_cast<size_t>(map.world) &&
                 (item.selection != nullptr ? item.selection->AnswerBytes(part.rank) > 0
                                            : item.planned != nullptr &&
                                                  (item.planned->takes_part[rank] || item.chooses));
    part.answers =
        part.reads && (!item.merges_on_the_way || item.planned->merging[rank].into == kCaller);
    if (!part.reads && !item.admitted->appends) continue;
    const auto at = std::find(admit_.workers.begin(), admit_.workers.end(), receivers[i].worker);
    parts_[static_cast<size_t>(at - admit_.workers.begin())].push_back(part);
  }
}

void BatchCall::PackLists(const Part& part, WorkerId worker, wire::WorkItem* to) const {
  for (const CallList& list : *wanted_[part.item].lists) {
    wire::List& packed = to->lists.emplace_back();
    packed.name = list.name;
    packed.number = planner_.lists().NumberOf(*list.data);
    if (!planner_.lists().Has(worker, packed.number)) packed.data = *list.data;
  }
}

wire::WorkItem BatchCall::WireItem(const Part& part, WorkerId worker) const {
  const CallItem& wanted = wanted_[part.item];
  const request::WorkItem& ask = wanted.ask;
  const Item& item = items_[part.item];
  const ShardMap& map = *item.admitted->map;
  wire::WorkItem to;
  to.epoch = map.epoch;
  to.storage_id = map.storage_id;
  to.layer = ask.layer;
  if (item.admitted->appends) {
    to.start = ask.start;
    to.k_tokens = ask.k_tokens;
    to.mark = item.admitted->mark;
    to.append_bytes = static_cast<size_t>(
        AppendBytes(map.SpecOf(ask.layer), *item.layout, part.rank, {ask.start, ask.kv_len()}));
  }
  if (!part.reads) return to;
  to.q_start = ask.queries().begin;
  to.q_tokens = ask.q_tokens;
  to.kv_tokens = ask.kv_len();
  to.keys = ask.seen();
  const Pattern& pattern =
      item.selection != nullptr ? item.selection->pattern() : item.planned->plan.problem().pattern;
  if (pattern.id() != map.retention->pattern(ask.layer).id()) to.pattern = pattern.text();
  to.query_bytes = static_cast<size_t>(ask.q_tokens * CountOf(item.layout->QueryHeads(part.rank)) *
                                       map.spec.head_dim) *
                   SizeOf(map.spec.dtype);
  if (item.selection != nullptr) {
    to.select = item.selection->names();
    if (selects_by_index(wanted, item)) {
      const ContextSpec& track = map.SpecOf(ask.layer);
      to.index_heads = static_cast<int>(wanted.q.heads);
      to.query_bytes = static_cast<size_t>(wanted.q.size()) * SizeOf(track.dtype) +
                       wanted.weights->size() * sizeof(float);
    }
    return to;
  }
  const Plan& plan = item.planned->plan;
  to.scale =
      wanted.scale != 0 ? wanted.scale : 1.0f / std::sqrt(static_cast<float>(map.spec.head_dim));
  PackLists(part, worker, &to);
  to.chooses = item.chooses;
  to.counts = item.chooses && ask.kind == request::WorkItem::Kind::kAttend;
  if (FollowsPlan(part.item)) {
    to.plan = plan.kind();
    to.stages = plan.stages();
    to.channel = item.channel;
    to.query_bytes = static_cast<size_t>(QueryBytes(plan, part.rank));
  } else if (item.merges_on_the_way) {
    const MergePlace& place = item.planned->merging[static_cast<size_t>(part.rank)];
    if (place.into != kCaller) to.merge_into = place.into;
    to.merges = place.from;
  }
  return to;
}

std::byte* BatchCall::PackPart(const Part& part, std::byte* at) const {
  const CallItem& wanted = wanted_[part.item];
  const Item& item = items_[part.item];
  const ShardMap& map = *item.admitted->map;
  if (item.admitted->appends) {
    at = PackAppend(map.SpecOf(wanted.ask.layer), *item.layout, part.rank,
                    {wanted.ask.start, wanted.ask.kv_len()}, wanted.k, wanted.v, at);
  }
  if (!part.reads) return at;
  if (selects_by_index(wanted, item)) {
    at = PackQueryRows(wanted.q, 0, wanted.ask.q_tokens, {0, static_cast<int>(wanted.q.heads)},
                       map.SpecOf(wanted.ask.layer).dtype, at);
    const size_t weight_bytes = wanted.weights->size() * sizeof(float);
    if (weight_bytes > 0) std::memcpy(at, wanted.weights->data(), weight_bytes);
    return at + weight_bytes;
  }
  if (FollowsPlan(part.item) && item.selection == nullptr) {
    return PackQueries(item.planned->plan, part.rank, wanted.q, at);
  }
  for (const HeadRange& heads : item.layout->QueryHeads(part.rank)) {
    at = PackQueryRows(wanted.q, 0, wanted.ask.q_tokens, heads, map.spec.dtype, at);
  }
  return at;
}

bool BatchCall::SameTensors(size_t rank, size_t other) const {
  if (parts_[rank].size() != 1 || parts_[other].size() != 1) return false;
  const Part& part = parts_[rank][0];
  const Part& that = parts_[other][0];
  const Item& item = items_[part.item];
  if (part.item != that.item || !part.reads || !that.reads || item.admitted->appends) return false;
  if (selects_by_index(wanted_[part.item], item)) return true;
  if (FollowsPlan(part.item) && item.selection == nullptr) {
    return SameQueries(item.planned->plan, part.rank, that.rank);
  }
  return item.layout->QueryHeads(part.rank) == item.layout->QueryHeads(that.rank);
}

Message BatchCall::Pack(size_t rank, const std::vector<ShareMessage>& packed) const {
  const std::vector<Part>& parts = parts_[rank];
  const WorkerId worker = admit_.workers[rank];
  wire::Work work;
  work.request = admit_.call;
  work.forget_lists = forget_lists_[rank];
  work.time_left = deadline_ - clock_.Now();
  work.trace = trace_;
  work.traceparent = traceparent_;
  work.tenant = tenant_;
  work.items.reserve(parts.size());
  size_t bytes = 0;
  for (const Part& part : parts) {
    const wire::WorkItem& item = work.items.emplace_back(WireItem(part, worker));
    bytes += item.append_bytes + item.query_bytes;
  }
  if (!packed.empty() && SameTensors(rank, static_cast<size_t>(packed.back().share.rank))) {
    const Buffer& same = packed.back().message.payload;
    ANNULUS_CHECK(same.size() == bytes);
    return wire::Encode(std::move(work), same);
  }
  Buffer tensors(bytes);
  std::byte* at = tensors.data();
  for (const Part& part : parts) at = PackPart(part, at);
  ANNULUS_CHECK(at == tensors.data() + tensors.size());
  return wire::Encode(std::move(work), std::move(tensors));
}

int64_t BatchCall::ChoiceBytesOf(const Part& part, WorkerId worker) const {
  if (!part.reads) return 0;
  const Item& item = items_[part.item];
  if (item.selection != nullptr) return item.selection->AnswerBytes(part.rank);
  int64_t bytes = item.choice_bytes;
  const KeptLists& kept = planner_.lists();
  for (const CallList& list : *wanted_[part.item].lists) {
    if (!kept.Has(worker, kept.NumberOf(*list.data))) bytes += list.data->size_bytes();
  }
  return bytes;
}

void BatchCall::NoteLists(const ShareAnswer& answer) {
  const auto rank = static_cast<size_t>(answer.rank);
  std::vector<uint64_t> had;
  for (size_t i = 0; i < parts_.at(rank).size(); ++i) {
    const Part& part = parts_[rank][i];
    if (!part.reads || items_[part.item].selection != nullptr) continue;
    if (!answer.done.items.at(i).status.ok()) continue;
    for (const CallList& list : *wanted_[part.item].lists) {
      if (const uint64_t number = planner_.lists().NumberOf(*list.data); number != 0) {
        had.push_back(number);
      }
    }
  }
  planner_.lists().Answered(admit_.workers[rank], had, forget_lists_[rank]);
}

int64_t BatchCall::AnswerBytesOf(const Part& part) const {
  const CallItem& wanted = wanted_[part.item];
  const Item& item = items_[part.item];
  if (item.selection != nullptr) return item.selection->AnswerBytes(part.rank);
  if (FollowsPlan(part.item)) return AnswerBytes(item.planned->plan, part.rank);
  size_t bytes = 0;  // a partial for each range of heads
  for (const HeadRange& heads : item.layout->QueryHeads(part.rank)) {
    bytes += PartialBytes(wanted.ask.q_tokens, heads.count, item.admitted->map->spec.v_head_dim);
  }
  return static_cast<int64_t>(bytes);
}

absl::Status BatchCall::OnAnswer(ShareAnswer answer) {
  NoteLists(answer);
  const std::vector<Part>& parts = parts_.at(static_cast<size_t>(answer.rank));
  size_t at = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    if (!part.answers || !answer.done.items.at(i).status.ok()) continue;
    const CallItem& wanted = wanted_[part.item];
    Item& item = items_[part.item];
    const auto bytes = static_cast<size_t>(AnswerBytesOf(part));
    if (answer.payload.size() - at < bytes) break;
    if (item.selection != nullptr) {
      ANNULUS_RETURN_IF_ERROR(
          item.selection->Add(part.rank, answer.payload.span().subspan(at, bytes)));
    } else if (FollowsPlan(part.item)) {
      ANNULUS_RETURN_IF_ERROR(MergeAnswer(item.planned->plan, part.rank,
                                          answer.payload.Part(at, bytes), item.merged.view()));
    } else {
      std::byte* from = answer.payload.data() + at;
      const int v_head_dim = item.admitted->map->spec.v_head_dim;
      for (const HeadRange& heads : item.layout->QueryHeads(part.rank)) {
        MergeHeads(item.merged.view(), heads.first,
                   PartialIn(from, wanted.ask.q_tokens, heads.count, v_head_dim));
        from += PartialBytes(wanted.ask.q_tokens, heads.count, v_head_dim);
      }
    }
    at += bytes;
  }
  if (at == answer.payload.size()) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("worker ", admit_.workers[static_cast<size_t>(answer.rank)], " answered with ",
                   answer.payload.size(), " bytes of partials, which is not what was asked for"));
}

absl::Status BatchCall::EndOf(size_t index, const action::Finish& finish) const {
  ANNULUS_RETURN_IF_ERROR(finish.items.at(index).status);
  const auto& of = wanted_[index].index_item;
  if (!of.has_value()) return absl::OkStatus();
  ANNULUS_RETURN_IF_ERROR(OfIndex(finish.items.at(*of).status));
  return items_[*of].index_status;
}

absl::StatusOr<StepResult> BatchCall::TakeResult(size_t index, const action::Finish& finish) {
  ANNULUS_RETURN_IF_ERROR(EndOf(index, finish));
  const action::ItemEnd& end = finish.items.at(index);
  StepResult result;
  result.epoch = end.epoch;
  result.tokens = end.tokens;
  const request::WorkItem& ask = wanted_[index].ask;
  if (ask.q_tokens == 0 || selects(index)) return result;
  Item& item = items_[index];
  if (const std::optional<Overflow> overflow = EndRows(item.merged.view())) {
    return absl::InvalidArgumentError(absl::StrCat("context ", ask.context, ", layer ", ask.layer,
                                                   ": ", OverflowError(*overflow).message()));
  }
  AddSinks(*wanted_[index].sinks, item.merged.view());
  result.out = std::move(item.merged).TakeOut();
  result.lse = std::move(item.merged).TakeLse();
  return result;
}

absl::StatusOr<std::vector<CallList>> BatchCall::TakeLists(size_t index) {
  std::vector<CallList> lists;
  const auto take = [&](const Item& item) -> absl::Status {
    if (item.selection == nullptr) return absl::OkStatus();
    ANNULUS_ASSIGN_OR_RETURN(std::vector<CallList> made, item.selection->TakeLists());
    for (CallList& list : made) lists.push_back(std::move(list));
    return absl::OkStatus();
  };
  ANNULUS_RETURN_IF_ERROR(take(items_[index]));
  if (const auto& of = wanted_[index].index_item; of.has_value()) {
    ANNULUS_RETURN_IF_ERROR(OfIndex(take(items_[*of])));
  }
  return lists;
}

}  // namespace annulus
