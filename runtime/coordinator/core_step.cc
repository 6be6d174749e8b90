// A Step: many contexts' appends and queries as one call. Its items share the messages and nothing
// else: each is admitted, committed or taken back for itself, once all ranks of its context have
// answered for it. Nothing of an item that fails stays appended.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/coordinator/core.h"
#include "runtime/coordinator/core_checks.h"

namespace annulus {

absl::Status CoordinatorCore::BeginStep(Call& call) {
  const size_t count = call.begin.items.size();
  if (count < 1 || count > static_cast<size_t>(kStepsAtOnceMax)) {
    return Bad("steps of one batch", static_cast<int64_t>(count),
               absl::StrCat("1 to ", kStepsAtOnceMax));
  }
  action::AdmitStep admit;
  admit.call = call.begin.call;
  int64_t bytes = 0;
  for (const event::StepItem& ask : call.begin.items) {
    Item& item = call.items.emplace_back();
    item.ask = ask;
    absl::Status status = AdmitItem(item, call.begin.call);
    admit.items.push_back(
        {status, item.map, item.appends, item.attends, item.horizon, {item.turn, ask.key}});
    if (!admit.items.back().live()) {
      EndItem(call.begin.call, item, std::move(status));
      continue;
    }
    // Once the sum is too large it grows no further, and so cannot overflow.
    if (item.appends && bytes <= limits_.request_bytes_max) {
      bytes += AppendBytesOf(item.map->spec, ask.k_tokens);
    }
    if (item.attends && bytes <= limits_.request_bytes_max) {
      bytes += AttendBytesOf(item.map->spec, ask.q_tokens);
    }
    for (const Holder& holder : item.map->Receivers(item.appends)) {
      const auto at = std::lower_bound(call.workers.begin(), call.workers.end(), holder.worker);
      if (at == call.workers.end() || *at != holder.worker) call.workers.insert(at, holder.worker);
    }
  }
  if (absl::Status room = Reserve(bytes, call); !room.ok()) {
    for (Item& item : call.items) EndItem(call.begin.call, item, room);
    return room;
  }
  admit.workers = call.workers;
  Emit(std::move(admit));
  return absl::OkStatus();
}

absl::Status CoordinatorCore::AdmitItem(Item& item, CallId call) {
  const event::StepItem& ask = item.ask;
  ANNULUS_ASSIGN_OR_RETURN(Context * context, FindWhole(ask.context));
  ANNULUS_ASSIGN_OR_RETURN(Layer * layer, FindLayer(*context, ask.layer));
  if (ask.k_tokens < 0 || ask.k_tokens > kContextTokensMax) {
    return Bad("tokens of k", ask.k_tokens, absl::StrCat("0 to ", kContextTokensMax));
  }
  if (ask.q_tokens < 0 ||
      (ask.q_tokens != ask.k_tokens && ask.q_tokens != 0 && ask.k_tokens != 0)) {
    return Bad("tokens of q", ask.q_tokens, absl::StrCat(ask.k_tokens, ", those of k, or none"));
  }
  if (ask.q_tokens == 0 && ask.k_tokens == 0) {
    return Bad("tokens of q", 0, "at least 1 in a step that appends nothing");
  }
  bool appends = false;
  if (ask.k_tokens > 0) {
    ANNULUS_ASSIGN_OR_RETURN(
        appends, CheckAppend(*context->map, *layer, RangeOf(ask.start, ask.k_tokens), ask.key));
  } else if (ask.start != layer->tokens) {
    return Bad("start", ask.start, absl::StrCat(layer->tokens, ", the layer's committed tokens"));
  }
  if (ask.q_tokens > ask.start + ask.k_tokens) {
    return Bad("tokens of q", ask.q_tokens,
               absl::StrCat("at most ", ask.start + ask.k_tokens, ", those of the context"));
  }
  item.map = context->map;
  item.appends = appends;
  item.attends = ask.q_tokens > 0;
  item.horizon = appends ? std::max(layer->horizon, HorizonOf(ask.start)) : layer->horizon;
  if (!appends) return absl::OkStatus();
  layer->appending = call;
  item.turn = ++layer->turn;
  return absl::OkStatus();
}

absl::Status CoordinatorCore::StillThere(const Item& item) const {
  if (item.appends) return absl::OkStatus();  // nothing overtakes an append
  const Context& context = contexts_.at(item.ask.context);
  return CheckOvertaken(*context.map, context.layers[static_cast<size_t>(item.ask.layer)],
                        item.kv_len(), item.horizon);
}

void CoordinatorCore::StepPrepared(Calls::iterator found, const event::Prepared& prepared) {
  const CallId id = found->first;
  Call& call = found->second;
  for (const auto& [index, why] : prepared.refused) EndItem(id, call.items.at(index), why);
  // What was refused is not in the messages; what has ended otherwise since is, and its answers
  // will not count.
  std::vector<bool> in_messages(call.items.size());
  for (size_t i = 0; i < call.items.size(); ++i) in_messages[i] = call.items[i].map != nullptr;
  for (const auto& [index, why] : prepared.refused) in_messages[index] = false;
  for (size_t i = 0; i < call.items.size(); ++i) {
    Item& item = call.items[i];
    if (!in_messages[i] || !(item.appends || item.attends)) continue;
    if (!item.ended) {
      if (absl::Status there = StillThere(item); !there.ok()) EndItem(id, item, std::move(there));
    }
    if (!item.ended && item.appends) {
      Context& context = contexts_.at(item.ask.context);
      context.layers[static_cast<size_t>(item.ask.layer)].Advance(item.ask.start);
    }
    item.sent = true;
    const absl::Span<const Holder> receivers = item.map->Receivers(item.appends);
    item.awaited = receivers.size();
    for (const Holder& holder : receivers) call.sent[holder.worker].push_back(i);
  }
  for (const int rank : prepared.ranks) {
    const WorkerId worker = call.workers.at(static_cast<size_t>(rank));
    const auto member = workers_.find(worker);
    if (member == workers_.end() || !IsUp(member->second)) continue;
    call.pending.emplace(worker, rank);
    Emit(action::SendTask{member->second.peer, id, rank});
  }
  EndStepIfDone(found);
}

void CoordinatorCore::OnStepDone(WorkerId id, const wire::StepDone& done) {
  const auto found = calls_.find(done.request);
  if (found == calls_.end()) return;  // late: the call has ended
  Call& call = found->second;
  const auto pending = call.pending.find(id);
  if (pending == call.pending.end()) return;  // a second answer
  const std::vector<size_t>& sent = call.sent[id];
  if (done.items.size() != sent.size()) {
    return Ban(id, absl::InternalError(absl::StrCat("it answered ", done.items.size(),
                                                    " items of a step, expected ", sent.size())));
  }
  const int rank = pending->second;
  call.pending.erase(pending);
  Emit(action::Deliver{found->first, rank});
  for (size_t i = 0; i < sent.size(); ++i) {
    Item& item = call.items[sent[i]];
    if (item.ended) continue;
    const absl::Status& status = done.items[i].status;
    if (!status.ok() && item.status.ok()) {
      item.status =
          absl::Status(status.code(), absl::StrCat(workers_.at(id).label, ": ", status.message()));
    }
    if (status.ok()) {
      NoteBytes(contexts_.at(item.ask.context), id, done.items[i].context_kv_bytes);
    }
    if (--item.awaited == 0) EndItem(found->first, item, std::exchange(item.status, {}));
  }
  EndStepIfDone(found);
}

// Decides an item: its append is committed, or taken back from the ranks that may have it.
void CoordinatorCore::EndItem(CallId call, Item& item, absl::Status status) {
  if (item.ended) return;
  item.ended = true;
  item.status = std::move(status);
  item.tokens = item.kv_len();
  if (!item.appends) return;
  Context& context = contexts_.at(item.ask.context);
  Layer& layer = context.layers[static_cast<size_t>(item.ask.layer)];
  if (layer.appending != call) return;
  layer.appending = 0;
  if (item.status.ok()) {
    layer.Commit(RangeOf(item.ask.start, item.ask.k_tokens), item.ask.key);
  } else if (item.sent) {
    SendToHolders(*context.map, wire::Trim{context.map->storage, item.ask.layer, layer.tokens});
  }
}

void CoordinatorCore::EndStepIfDone(Calls::iterator found) {
  if (!found->second.pending.empty()) return;
  EndStep(found, absl::InternalError("nobody answered for this step"));
}

// Ends the call; `why` is the end of the items that have none.
void CoordinatorCore::EndStep(Calls::iterator found, const absl::Status& why) {
  const CallId id = found->first;
  Call call = std::move(found->second);
  calls_.erase(found);
  in_flight_bytes_ -= call.bytes;
  CancelPending(id, call);
  action::Finish finish;
  finish.call = id;
  for (Item& item : call.items) {
    EndItem(id, item, why);
    finish.items.push_back({item.status, item.map == nullptr ? 0 : item.map->epoch, item.tokens});
  }
  Emit(std::move(finish));
}

// Items of contexts that went on at another epoch do not.
void CoordinatorCore::EndStaleItems(Calls::iterator found, const absl::Status& why) {
  for (Item& item : found->second.items) {
    if (item.map == nullptr) continue;
    const auto context = contexts_.find(item.ask.context);
    if (context == contexts_.end() || context->second.map->epoch == item.map->epoch) continue;
    EndItem(found->first, item, why);
  }
}

}  // namespace annulus
