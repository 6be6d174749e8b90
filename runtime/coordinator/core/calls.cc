#include "runtime/coordinator/core/calls.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "annulus/retry_hint.h"
#include "base/check.h"
#include "base/status.h"
#include "runtime/coordinator/core/checks.h"
#include "runtime/identity/peer_name.h"

namespace annulus {
void Calls::Begin(const event::Begin& begin) {
  ANNULUS_CHECK(begin.call != 0 && !calls_.contains(begin.call));
  const Entry entry = calls_.emplace(begin.call, Call{}).first;
  entry->second.tenant = begin.caller.tenant;
  entry->second.peer = PeerOf(begin.caller);
  tenants_.AddCalls(begin.caller.tenant, 1, 0);
  entry->second.deadline = begin.deadline;
  absl::Status status =
      out_.now() >= begin.deadline
          ? absl::DeadlineExceededError("the call's deadline had passed when it came")
          : std::visit([&](const auto& request) { return Start(entry, request, begin.caller); },
                       begin.request);
  if (status.ok()) {
    in_flight_.Add(entry->second.peer, 1);
    return Settle(entry);
  }
  calls_.erase(entry);  // nothing was started, so nothing needs undoing
  tenants_.AddCalls(begin.caller.tenant, -1, 0);
  out_.Emit(action::Finish{begin.call, std::move(status), 0, {}});
}

// All holders of the map are to answer.
void Calls::Await(Call& call, const ShardMap& map, Kind kind) const {
  call.kind = kind;
  call.context = map.context;
  call.owner = map.spec.owner;
  call.epoch = map.epoch;
  for (const Holder& holder : map.holders) {
    if (members_.IsUp(holder.worker)) call.pending.emplace(holder.worker, holder.rank);
  }
}

absl::Status Calls::Start(Entry entry, const request::Create& create, const Caller& caller) {
  ContextSpec spec = create.spec;
  ANNULUS_ASSIGN_OR_RETURN(spec.owner, OwnerFor(caller, spec.owner));
  ANNULUS_RETURN_IF_ERROR(CheckCreate(caller));
  ANNULUS_RETURN_IF_ERROR(CheckRoom(entry->second, caller));
  ANNULUS_ASSIGN_OR_RETURN(const Context* context, contexts_.Create(spec, entry->first));
  Await(entry->second, *context->map, Kind::kOpen);
  return absl::OkStatus();
}

absl::Status Calls::Start(Entry entry, const request::Fork& fork, const Caller& caller) {
  ANNULUS_ASSIGN_OR_RETURN(Context * parent, FindUsable(fork.context, caller));
  ANNULUS_RETURN_IF_ERROR(CheckCreate(caller));
  ANNULUS_RETURN_IF_ERROR(CheckRoom(entry->second, caller));
  ANNULUS_ASSIGN_OR_RETURN(const Context* child,
                           contexts_.Fork(*parent, fork.tokens, entry->first));
  Await(entry->second, *child->map, Kind::kOpen);
  entry->second.uses = fork.context;
  contexts_.Use(*parent, 1);
  return absl::OkStatus();
}

// Is done once it has begun.
absl::Status Calls::Start(Entry entry, const request::Truncate& truncate, const Caller& caller) {
  ANNULUS_ASSIGN_OR_RETURN(Context * context, FindUsable(truncate.context, caller));
  ANNULUS_RETURN_IF_ERROR(CheckRoom(entry->second, caller));
  ANNULUS_RETURN_IF_ERROR(contexts_.Truncate(*context, truncate.tokens, entry->first));
  Await(entry->second, *context->map, Kind::kTruncate);
  entry->second.uses = truncate.context;
  contexts_.Use(*context, 1);
  return absl::OkStatus();
}

absl::Status Calls::Start(Entry entry, const request::Release& release, const Caller& caller) {
  const ContextId id = release.context;
  ANNULUS_ASSIGN_OR_RETURN(const Context* context, recovery_.Find(caller, id));
  ANNULUS_RETURN_IF_ERROR(context->CheckNotSwitching());
  const absl::Status released = absl::CancelledError(absl::StrCat("context ", id, " was released"));
  for (Entry next = calls_.begin(); next != calls_.end();) {
    const Entry other = next++;
    for (Item& item : other->second.items) {
      if (item.ask.context == id) EndItem(other->first, item, released);
    }
    if (other->second.kind == Kind::kItems) {
      Settle(other);
    } else if (other->second.context == id) {
      End(other, released);
    }
  }
  Await(entry->second, *context->map, Kind::kRelease);
  contexts_.Release(id, entry->first);
  return absl::OkStatus();
}

// Ends at once.
absl::Status Calls::Start(Entry entry, const request::KeepAlive& keep_alive, const Caller& caller) {
  if (std::ssize(keep_alive.contexts) > kRenewedMax) {
    return Bad("contexts", std::ssize(keep_alive.contexts),
               absl::StrCat("at most ", kRenewedMax, " in one KeepAlive"));
  }
  entry->second.kind = Kind::kItems;
  for (const ContextId id : keep_alive.contexts) {
    Item& item = entry->second.items.emplace_back();
    item.ended = true;
    const absl::StatusOr<Context*> context = recovery_.Find(caller, id);
    item.status = context.status();
    if (context.ok()) contexts_.Use(**context);
  }
  return absl::OkStatus();
}

absl::Status Calls::Reserve(int64_t bytes, bool direct, Call& call, const Caller& caller) {
  if (bytes > limits_.request_bytes_max && !direct) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensors of the call: ", bytes, " bytes with their answer; expected at most ",
                     limits_.request_bytes_max, " (request_bytes_max): send fewer tokens at once"));
  }
  ANNULUS_RETURN_IF_ERROR(tenants_.CheckCallBytes(caller, bytes));
  ANNULUS_RETURN_IF_ERROR(CheckRoom(call, caller));
  if (!direct) return Hold(bytes, call);
  call.uploading = bytes;
  tenants_.AddCalls(call.tenant, 0, bytes);
  return absl::OkStatus();
}

absl::Status Calls::Hold(int64_t bytes, Call& call) {
  if (absl::Status room = in_flight_bytes_.Check(call.peer, bytes); !room.ok()) {
    const bool may_fit = call.bytes + bytes <= ShareOf(limits_.in_flight_bytes_max);
    return may_fit ? WithRetryAfter(room, kRetryAfter) : room;
  }
  call.bytes += bytes;
  in_flight_bytes_.Add(call.peer, bytes);
  tenants_.AddCalls(call.tenant, 0, bytes);
  return absl::OkStatus();
}

absl::Status Calls::CheckRoom(const Call& call, const Caller& caller) const {
  ANNULUS_RETURN_IF_ERROR(tenants_.CheckCall(caller));
  const absl::Status room = in_flight_.Check(call.peer, 1);
  return room.ok() ? room : WithRetryAfter(room, kRetryAfter);
}

// Of contexts and forks. Nobody gets past its quota because the coordinator does not know yet what
// it has.
absl::Status Calls::CheckCreate(const Caller& caller) {
  if (HasQuotas(caller) && caller.quotas.contexts_max != kNoQuota && recovery_.may_find_more()) {
    return absl::UnavailableError(
        "contexts_max: not known yet how many contexts the tenant has, since the coordinator has "
        "started anew; retry");
  }
  return tenants_.CheckCreate(caller, recovery_.Pending(caller));
}

void Calls::GiveUp(CallId id, const absl::Status& why) {
  const Entry entry = calls_.find(id);
  if (entry != calls_.end()) End(entry, why);
}

absl::Status Calls::OnDone(WorkerId id, const wire::Done& done) {
  const Entry entry = calls_.find(done.request);
  if (entry == calls_.end()) return absl::OkStatus();  // late: the call has ended
  Call& call = entry->second;
  const auto pending = call.pending.find(id);
  if (pending == call.pending.end()) return absl::OkStatus();  // a second answer
  if (call.kind == Kind::kItems) return absl::InternalError("it answered work as another task");
  if (done.epoch != call.epoch) {
    End(entry, absl::InternalError(absl::StrCat("epoch of ", members_.at(id).label, "'s answer: ",
                                                done.epoch, "; expected ", call.epoch)));
    return absl::OkStatus();
  }
  call.pending.erase(pending);
  tenants_.NoteKv(call.owner, id, done.owner_kv_bytes);
  if (!done.status.ok()) {
    End(entry, Named(id, nullptr, done.status));
    return absl::OkStatus();
  }
  if (contexts_.Has(call.context)) {
    contexts_.NoteBytes(contexts_.at(call.context), id, done.context_kv_bytes);
  }
  Settle(entry);
  return absl::OkStatus();
}

// What a worker said of a call or its item. An append for which KV was full may find room if it is
// tried again.
absl::Status Calls::Named(WorkerId id, const Item* item, const absl::Status& status) {
  const std::string& label = members_.at(id).label;
  if (item != nullptr && item->appends && absl::IsResourceExhausted(status) &&
      contexts_.MakeRoom(id, RoomFor(*item, id))) {
    return absl::UnavailableError(absl::StrCat(label, ": KV was full (", status.message(),
                                               "), and unused contexts have gone; retry"));
  }
  return absl::Status(status.code(), absl::StrCat(label, ": ", status.message()));
}

void Calls::OnLinkLost(WorkerId id) {
  for (Entry next = calls_.begin(); next != calls_.end();) {
    const Entry entry = next++;
    if (!entry->second.merges || !entry->second.sent.contains(id)) continue;
    End(entry, absl::UnavailableError(
                   absl::StrCat(members_.at(id).label, " lost its link to another worker; retry")));
  }
}

void Calls::LoseWorker(WorkerId id, const absl::Status& why) {
  EndStale(why);
  for (Entry next = calls_.begin(); next != calls_.end();) {
    const Entry entry = next++;
    if (entry->second.pending.erase(id) != 0) Settle(entry);
  }
}

void Calls::EndStale(const absl::Status& why) {
  const auto is_stale = [this](ContextId id, uint64_t epoch) {
    return contexts_.Has(id) && contexts_.at(id).map->epoch != epoch;
  };
  for (Entry next = calls_.begin(); next != calls_.end();) {
    const Entry entry = next++;
    Call& call = entry->second;
    for (Item& item : call.items) {
      if (item.map == nullptr || !is_stale(item.ask.context, item.map->epoch)) continue;
      EndItem(entry->first, item, why);
    }
    if (call.kind == Kind::kItems) {
      Settle(entry);
    } else if (call.kind != Kind::kRelease && is_stale(call.context, call.epoch)) {
      End(entry, why);
    }
  }
}

void Calls::EndDue() {
  for (Entry next = calls_.begin(); next != calls_.end();) {
    const Entry entry = next++;
    const Call& call = entry->second;
    if (out_.now() >= call.failure_due) {
      End(entry, absl::InternalError("the call failed"));
    } else if (out_.now() >= call.deadline) {
      End(entry, absl::DeadlineExceededError("the call's deadline passed"));
    }
  }
}

absl::Time Calls::NextTimer() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [id, call] : calls_) next = std::min({next, call.deadline, call.failure_due});
  return next;
}

// Ends the call if nothing is awaited any more.
void Calls::Settle(Entry entry) {
  Call& call = entry->second;
  if (call.kind == Kind::kItems) {
    if (call.merges) TellOfFailed(entry->first, call);
    const bool ended = std::all_of(call.items.begin(), call.items.end(),
                                   [](const Item& item) { return item.ended; });
    if (ended || (call.prepared && call.pending.empty())) {
      End(entry, absl::InternalError("nobody answered for this item of the call"));
    }
  } else if (call.pending.empty()) {
    End(entry, absl::OkStatus());
  }
}

// What of the call has not ended yet ends with this status. Where it fails the workers are left as
// they were before: links keep order, so whatever comes next on the same context finds it so.
void Calls::End(Entry entry, absl::Status status) {
  const CallId id = entry->first;
  Call call = std::move(entry->second);
  calls_.erase(entry);
  in_flight_.Add(call.peer, -1);
  in_flight_bytes_.Add(call.peer, -call.bytes);
  tenants_.AddCalls(call.tenant, -1, -(call.bytes + call.uploading));
  if (!call.items.empty()) CancelPending(id, call);
  action::Finish finish{id, status, call.context, {}};
  for (Item& item : call.items) {
    EndItem(id, item, item.status.ok() ? status : absl::Status(item.status));
    StopUsing(item);
    finish.items.push_back({item.status, item.map == nullptr ? 0 : item.map->epoch,
                            item.status.ok() ? item.ask.kv_len() : 0, item.truncations});
  }
  if (call.kind == Kind::kItems) finish.status = absl::OkStatus();
  if (contexts_.Has(call.uses)) contexts_.Use(contexts_.at(call.uses), -1);
  if (call.kind == Kind::kOpen && contexts_.Has(call.context)) {
    if (status.ok()) {
      contexts_.at(call.context).created = true;
      contexts_.Use(contexts_.at(call.context));
    } else {
      contexts_.Release(call.context, 0);
    }
  }
  out_.Emit(std::move(finish));
}

Calls::InFlight Calls::CountInFlight(const Caller& caller) const {
  InFlight counts;
  for (const auto& [id, call] : calls_) {
    if (!MayKnow(caller, call.tenant)) continue;
    ++counts.calls;
    counts.bytes += call.bytes + call.uploading;
  }
  return counts;
}

void Calls::CancelPending(CallId id, const Call& call) {
  for (const auto& [worker, rank] : call.pending) members_.Tell(worker, wire::Cancel{id});
}

}  // namespace annulus
