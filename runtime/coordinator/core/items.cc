// The items of calls: what is admitted, sent, committed or taken back.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/retention.h"
#include "runtime/coordinator/core/calls.h"
#include "runtime/coordinator/core/checks.h"

namespace annulus {
namespace {

// Whether the tokens are to be appended: not if they were, by the same request.
absl::StatusOr<bool> CheckAppend(const Context& context, const Layer& layer, TokenRange tokens,
                                 RequestKey key) {
  if (layer.appending != 0) {
    return absl::UnavailableError(
        "another append to this layer, or an earlier try of this one, is in flight; retry after "
        "it");
  }
  if (key.given() && key == layer.last_key) {
    if (tokens != layer.last_tokens) {
      return Bad("sequence of the request's key", static_cast<int64_t>(key.sequence),
                 absl::StrCat("a new one: it appended tokens [", layer.last_tokens.begin, ", ",
                              layer.last_tokens.end, ")"));
    }
    if (layer.tokens >= tokens.end) return false;
    return absl::AbortedError("what this request appended has been truncated since");
  }
  if (context.moving >= Moving::kHoldsOff) {
    return absl::UnavailableError("the context is being moved; retry");
  }
  if (tokens.begin != layer.tokens) {
    return Bad("start", tokens.begin, absl::StrCat(layer.tokens, ", the layer's committed tokens"));
  }
  const ContextSpec& spec = context.map->spec;
  const int64_t tokens_max = spec.tokens_expected > 0 ? spec.tokens_expected : kContextTokensMax;
  if (tokens.size() > tokens_max - tokens.begin) {
    return Bad("tokens of k", tokens.size(),
               absl::StrCat("at most ", tokens_max - tokens.begin, ", since the context ends at ",
                            tokens_max));
  }
  return true;
}

absl::Status CheckAttend(const Layer& layer, const request::WorkItem& ask) {
  const int64_t kv_len = ask.kv_len();
  if (ask.q_tokens < 1 || ask.q_tokens > kContextTokensMax) {
    return Bad("tokens of q", ask.q_tokens, absl::StrCat("1 to ", kContextTokensMax));
  }
  if (kv_len < 1 || kv_len > layer.tokens) {
    return Bad("kv_len", kv_len,
               absl::StrCat("1 to ", layer.tokens, ", the committed tokens of layer ", ask.layer));
  }
  if (ask.q_start < 0 || ask.q_start > kContextTokensMax - ask.q_tokens) {
    return Bad("q_start", ask.q_start,
               absl::StrCat("0 to ", kContextTokensMax - ask.q_tokens, " with ", ask.q_tokens,
                            " queries"));
  }
  if (ask.keys.begin < 0 || ask.keys.end > kv_len || ask.keys.begin >= ask.keys.end) {
    return absl::InvalidArgumentError(
        absl::StrCat("keys: [", ask.keys.begin, ", ", ask.keys.end,
                     "); expected at least one of the tokens from 0 to kv_len ", kv_len));
  }
  return absl::OkStatus();
}

// Of a Step, whose queries are the last tokens that the layer has after it.
absl::Status CheckStep(const Layer& layer, const request::WorkItem& ask) {
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
  if (ask.k_tokens == 0 && ask.start != layer.tokens) {
    return Bad("start", ask.start, absl::StrCat(layer.tokens, ", the layer's committed tokens"));
  }
  return absl::OkStatus();
}

absl::Status CheckAsk(const Layer& layer, const request::WorkItem& ask) {
  using Kind = request::WorkItem::Kind;
  if (ask.kind == Kind::kAttend) return CheckAttend(layer, ask);
  if (ask.kind == Kind::kStep) return CheckStep(layer, ask);
  if (ask.k_tokens >= 1 && ask.k_tokens <= kContextTokensMax) return absl::OkStatus();
  return Bad("tokens of k", ask.k_tokens, absl::StrCat("1 to ", kContextTokensMax));
}

// A rank that fails drags the others of its exchange along; whose answer comes first is chance. An
// error that may be such an echo is held back this long for the one that caused it.
constexpr absl::Duration kEchoWait = absl::Milliseconds(50);

bool MayBeEcho(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsCancelled(status) || absl::IsAborted(status);
}

}  // namespace

absl::StatusOr<Context*> Calls::FindUsable(ContextId id) const {
  Context* context = contexts_.Find(id);
  if (context == nullptr) return recovery_.WhyUnknown(id);
  contexts_.Use(*context);
  ANNULUS_RETURN_IF_ERROR(context->CheckUsable());
  return context;
}

Layer& Calls::LayerOf(const Item& item) const {
  return contexts_.at(item.ask.context).layers[static_cast<size_t>(item.ask.layer)];
}

// Of all holders of the context, for a direct append.
absl::StatusOr<std::vector<std::string>> Calls::DataAddresses(
    const request::WorkItem& append) const {
  ANNULUS_ASSIGN_OR_RETURN(Context * context, FindUsable(append.context));
  ANNULUS_ASSIGN_OR_RETURN(const Layer* layer, context->FindLayer(append.layer));
  ANNULUS_RETURN_IF_ERROR(CheckAsk(*layer, append));
  std::vector<std::string> addresses;
  for (const Holder& holder : context->map->holders) {
    const Member& member = members_.at(holder.worker);
    if (member.status.data_address.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat(member.label, " has no data port; upload by relay (ClientOptions::upload)"));
    }
    addresses.push_back(member.status.data_address);
  }
  return addresses;
}

absl::Status Calls::Start(Entry entry, const request::Work& work) {
  if (work.items.empty() || work.items.size() > static_cast<size_t>(kStepsAtOnceMax)) {
    return Bad("steps of one batch", std::ssize(work.items),
               absl::StrCat("1 to ", kStepsAtOnceMax));
  }
  action::Admit admit;
  if (work.direct) {
    ANNULUS_ASSIGN_OR_RETURN(admit.data_addresses, DataAddresses(work.items[0]));
  }
  Call& call = entry->second;
  call.kind = Kind::kItems;
  admit.call = entry->first;
  std::map<WorkerId, size_t> receivers;
  int64_t bytes = 0;
  bool any_live = false;
  for (const request::WorkItem& ask : work.items) {
    Item& item = call.items.emplace_back();
    item.ask = ask;
    item.status = AdmitItem(item, admit.call);
    admit.items.push_back({item.status,
                           item.map,
                           item.appends,
                           item.attends,
                           item.horizon,
                           {item.append_number, ask.key}});
    if (!admit.items.back().live()) {
      item.ended = true;
      continue;
    }
    any_live = true;
    // Once the sum is too large it grows no further, and so cannot overflow.
    if (!work.direct && bytes <= limits_.request_bytes_max) bytes += BytesOf(item);
    for (const Holder& holder : item.map->Receivers(item.appends)) {
      if (receivers.emplace(holder.worker, call.workers.size()).second) {
        call.workers.push_back(holder.worker);
      }
    }
  }
  absl::Status status = any_live ? Reserve(bytes, call) : absl::OkStatus();
  if (!status.ok()) {
    for (Item& item : call.items) {
      EndItem(admit.call, item, status);
      StopUsing(item);
    }
    return status;
  }
  if (!any_live) return absl::OkStatus();
  admit.workers = call.workers;
  out_.Emit(std::move(admit));
  return absl::OkStatus();
}

absl::Status Calls::AdmitItem(Item& item, CallId call) {
  const request::WorkItem& ask = item.ask;
  ANNULUS_ASSIGN_OR_RETURN(Context * context, FindUsable(ask.context));
  ANNULUS_ASSIGN_OR_RETURN(Layer * layer, context->FindLayer(ask.layer));
  ANNULUS_RETURN_IF_ERROR(CheckAsk(*layer, ask));
  if (ask.k_tokens > 0) {
    ANNULUS_ASSIGN_OR_RETURN(
        item.appends, CheckAppend(*context, *layer, RangeOf(ask.start, ask.k_tokens), ask.key));
  }
  if (ask.kind == request::WorkItem::Kind::kStep && ask.q_tokens > ask.kv_len()) {
    item.appends = false;
    return Bad("tokens of q", ask.q_tokens,
               absl::StrCat("at most ", item.ask.kv_len(), ", those of the context"));
  }
  item.map = context->map;
  item.attends = ask.q_tokens > 0;
  item.horizon = item.appends ? std::max(layer->horizon, HorizonOf(ask.start)) : layer->horizon;
  contexts_.Use(*context, 1);
  if (!item.appends) return absl::OkStatus();
  layer->appending = call;
  item.append_number = ++layer->append_number;
  return absl::OkStatus();
}

// Of its tensors, with the answer.
int64_t Calls::BytesOf(const Item& item) {
  int64_t bytes = 0;
  if (item.appends) bytes += AppendBytesOf(item.map->spec, item.ask.k_tokens);
  if (item.attends) bytes += AttendBytesOf(item.map->spec, item.ask.q_tokens);
  return bytes;
}

// Bytes that a holder's pages of an append take at most.
int64_t Calls::RoomFor(const Item& item, WorkerId id) const {
  const ShardMap& map = *item.map;
  const TokenRange blocks{item.ask.start / kBlockTokens * kBlockTokens,
                          BlocksOf(item.ask.kv_len()) * kBlockTokens};
  const auto holder = std::find_if(map.holders.begin(), map.holders.end(),
                                   [id](const Holder& holder) { return holder.worker == id; });
  return AppendBytes(map.spec, LayoutOf(map.spec, map.world, blocks.end), holder->rank, blocks);
}

// Between its admission and its sending a query may have been overtaken by calls that leave it
// without what it reads. Nothing overtakes an append.
absl::Status Calls::CheckOvertaken(const Item& item) const {
  if (item.appends) return absl::OkStatus();
  const Layer& layer = LayerOf(item);
  if (layer.tokens < item.ask.kv_len()) {
    return absl::AbortedError("the layer was truncated during the call");
  }
  if (item.map->spec.kv_efficient && layer.horizon != item.horizon) {
    return absl::UnavailableError("the layer let go of blocks during the call; retry");
  }
  return absl::OkStatus();
}

void Calls::Prepared(const event::Prepared& prepared) {
  const Entry entry = calls_.find(prepared.call);
  if (entry == calls_.end()) return;  // it has failed meanwhile
  const CallId id = entry->first;
  Call& call = entry->second;
  for (const auto& [index, why] : prepared.refused) EndItem(id, call.items.at(index), why);
  for (Item& item : call.items) {
    if (item.ended) continue;
    if (absl::Status there = CheckOvertaken(item); !there.ok()) EndItem(id, item, there);
  }
  for (const size_t index : prepared.merging) call.items.at(index).merges = call.merges = true;
  // What has ended since it was packed is in the messages too; its answers will not count.
  for (const event::Share& share : prepared.shares) {
    const WorkerId worker = call.workers.at(static_cast<size_t>(share.rank));
    for (const size_t index : share.items) {
      Item& item = call.items.at(index);
      if (!item.ended && !item.sent && item.appends) LayerOf(item).Advance(item.ask.start);
      item.sent = true;
      ++item.awaited;
    }
    call.sent[worker] = share.items;
  }
  for (Item& item : call.items) {
    if (!item.ended && !item.sent) EndItem(id, item, absl::OkStatus());
  }
  Settle(entry);
  if (!calls_.contains(id)) return;  // nothing of it is left
  for (const event::Share& share : prepared.shares) {
    const WorkerId worker = call.workers[static_cast<size_t>(share.rank)];
    if (!members_.IsUp(worker)) continue;
    call.pending.emplace(worker, share.rank);
    out_.Emit(action::SendTask{members_.at(worker).peer, id, share.rank});
  }
  call.prepared = true;
  Settle(entry);
}

absl::Status Calls::OnWorkDone(WorkerId id, const wire::WorkDone& done) {
  const Entry entry = calls_.find(done.request);
  if (entry == calls_.end()) return absl::OkStatus();  // late: the call has ended
  Call& call = entry->second;
  const auto pending = call.pending.find(id);
  if (pending == call.pending.end()) return absl::OkStatus();  // a second answer
  if (call.kind != Kind::kItems) return absl::InternalError("it answered another task as work");
  const std::vector<size_t>& sent = call.sent[id];
  if (done.items.size() != sent.size()) {
    return absl::InternalError(
        absl::StrCat("it answered ", done.items.size(), " items, expected ", sent.size()));
  }
  const int rank = pending->second;
  call.pending.erase(pending);
  bool counts = false;
  for (size_t i = 0; i < sent.size(); ++i) {
    Item& item = call.items[sent[i]];
    if (item.ended) continue;
    const uint64_t epoch = item.map->epoch;
    if (done.items[i].epoch == epoch) {
      counts = true;
    } else {
      EndItem(done.request, item,
              absl::InternalError(absl::StrCat(members_.at(id).label, " answered at epoch ",
                                               done.items[i].epoch, ", expected ", epoch)));
    }
  }
  if (counts) out_.Emit(action::Deliver{done.request, rank});
  for (size_t i = 0; i < sent.size(); ++i) {
    Item& item = call.items[sent[i]];
    if (item.ended) continue;
    const absl::Status& status = done.items[i].status;
    if (status.ok()) {
      contexts_.NoteBytes(contexts_.at(item.ask.context), id, done.items[i].context_kv_bytes);
    } else if (item.status.ok() || (item.echo && !MayBeEcho(status))) {
      item.status = Named(id, &item, status);
      item.echo = MayBeEcho(status);
    }
    if (--item.awaited == 0) EndItem(done.request, item, absl::Status(item.status));
  }
  EndIfHopeless(entry);
  return absl::OkStatus();
}

// Nobody waits for the other ranks of items that have failed, once that is all there is; but for a
// moment for the error that caused what may be its echo.
void Calls::EndIfHopeless(Entry entry) {
  Call& call = entry->second;
  bool failed = true, echo = false;
  for (const Item& item : call.items) {
    if (item.ended) continue;
    failed &= !item.status.ok();
    echo |= item.echo;
  }
  if (failed && !echo) return End(entry, absl::OkStatus());
  if (failed && call.failure_due == absl::InfiniteFuture()) {
    call.failure_due = out_.now() + kEchoWait;
    CancelPending(entry->first, call);
  }
  Settle(entry);
}

// Ranks wait for no partials of items that have failed at another one: they hear of it here.
void Calls::TellOfFailed(CallId id, Call& call) {
  std::vector<bool> failed(call.items.size());
  bool any = false;
  for (size_t i = 0; i < call.items.size(); ++i) {
    Item& item = call.items[i];
    if (!item.merges || item.status.ok() || !call.prepared) continue;
    item.merges = false;
    failed[i] = any = true;
  }
  if (!any) return;
  for (const auto& [worker, rank] : call.pending) {
    wire::Cancel cancel{id};
    for (const size_t index : call.sent[worker]) {
      const request::WorkItem& ask = call.items[index].ask;
      if (failed[index]) {
        cancel.items.push_back({call.items[index].map->storage, ask.layer});
      }
    }
    if (!cancel.items.empty()) members_.Tell(worker, std::move(cancel));
  }
}

// A call uses the contexts of its items until it ends, also where an item has ended before.
void Calls::StopUsing(const Item& item) {
  if (item.map == nullptr || !contexts_.Has(item.ask.context)) return;
  contexts_.Use(contexts_.at(item.ask.context), -1);
}

// Decides an item: its append is committed, or taken back from the ranks that may have it.
void Calls::EndItem(CallId call, Item& item, const absl::Status& status) {
  if (item.ended) return;
  item.ended = true;
  item.status = status;
  if (!item.appends) return;
  Layer& layer = LayerOf(item);
  if (layer.appending != call) return;
  layer.appending = 0;
  if (status.ok()) {
    layer.Commit(RangeOf(item.ask.start, item.ask.k_tokens), item.ask.key);
  } else if (item.sent) {
    const ShardMap& map = *contexts_.at(item.ask.context).map;
    members_.TellHolders(map, wire::TruncateLayer{map.storage, item.ask.layer, layer.tokens});
  }
}

}  // namespace annulus
