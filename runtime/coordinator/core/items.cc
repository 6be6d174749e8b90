// The items of calls once they are admitted: what is sent, committed or taken back.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"
#include "runtime/coordinator/core/calls.h"
#include "runtime/coordinator/core/checks.h"

namespace annulus {
namespace {

// A rank that fails drags the others of its exchange along; whose answer comes first is chance. An
// error that may be such an echo is held back this long for the one that caused it.
constexpr absl::Duration kEchoWait = absl::Milliseconds(50);

bool MayBeEcho(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsCancelled(status) || absl::IsAborted(status);
}

}  // namespace

Layer& Calls::LayerOf(const Item& item) const {
  return contexts_.at(item.ask.context).layers[static_cast<size_t>(item.ask.layer)];
}

// Bytes that a holder's pages of an append take at most.
int64_t Calls::RoomFor(const Item& item, WorkerId id) const {
  const ShardMap& map = *item.map;
  const TokenRange blocks{item.ask.start / kBlockTokens * kBlockTokens,
                          BlocksOf(item.ask.kv_len()) * kBlockTokens};
  const auto holder = std::find_if(map.holders.begin(), map.holders.end(),
                                   [id](const Holder& holder) { return holder.worker == id; });
  const int layer = item.ask.layer;
  return AppendBytes(map.SpecOf(layer), map.layout(layer, blocks.end), holder->rank, blocks);
}

// Between its admission and its sending a query may have been overtaken by calls that leave it
// without what it reads. Nothing overtakes an append. An Attend of one trip reads whatever the
// layer's tokens are when it is sent; the tokens of others, and of steps, must be those that an
// earlier trip or try of the call knew.
absl::Status Calls::CheckOvertaken(const Item& item) const {
  if (item.appends) return absl::OkStatus();
  const Layer& layer = LayerOf(item);
  const bool knew = item.ask.truncations.has_value() || item.ask.k_tokens > 0;
  if (layer.tokens < item.map->RowsOf(item.ask.layer, item.ask.kv_len()) ||
      (knew && layer.truncations != item.truncations)) {
    return WasTruncated(item.map->spec, item.ask);
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
  if (absl::Status room = Hold(prepared.bytes, call); !room.ok()) return End(entry, room);
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
        absl::StrCat("items answered: ", done.items.size(), "; expected ", sent.size()));
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
              absl::InternalError(absl::StrCat("epoch of ", members_.at(id).label, "'s answer: ",
                                               done.items[i].epoch, "; expected ", epoch)));
    }
  }
  if (counts) out_.Emit(action::Deliver{done.request, rank});
  for (size_t i = 0; i < sent.size(); ++i) {
    Item& item = call.items[sent[i]];
    if (item.ended) continue;
    const absl::Status& status = done.items[i].status;
    if (status.ok()) {
      contexts_.NoteBytes(contexts_.at(item.ask.context), id, done.items[i].context_kv_bytes);
      tenants_.NoteKv(item.map->spec.owner, id, done.items[i].owner_kv_bytes);
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
        cancel.items.push_back({call.items[index].map->storage_id, ask.layer});
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
  tenants_.AddKvComing(item.map->spec.owner, -item.kv_bytes);
  Layer& layer = LayerOf(item);
  if (layer.appending != call) return;
  layer.appending = 0;
  if (status.ok()) {
    layer.Commit(RangeOf(item.ask.start, item.ask.k_tokens), item.ask.key);
  } else if (item.sent) {
    // Whether the block was copied before is not known.
    if (item.copies) layer.forked_blocks = BlocksOf(layer.tokens);
    const ShardMap& map = *contexts_.at(item.ask.context).map;
    members_.TellHolders(map, wire::TruncateLayer{map.storage_id, item.ask.layer, layer.tokens});
  }
}

}  // namespace annulus
