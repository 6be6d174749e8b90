// The life of a call: admitted, prepared by its caller, sent to ranks, answered, finished.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "runtime/coordinator/core.h"
#include "runtime/coordinator/core_checks.h"
#include "runtime/store/context_layout.h"

namespace annulus {
namespace {

using Kind = event::Begin::Kind;

// A rank that fails drags the others of its exchange along; whose Done comes first is chance. An
// error that may be such an echo is held back this long for the one that caused it.
constexpr absl::Duration kEchoWait = absl::Milliseconds(50);

bool MayBeEcho(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsCancelled(status) || absl::IsAborted(status);
}

}  // namespace

void CoordinatorCore::On(const event::Begin& begin) {
  ANNULUS_CHECK(begin.call != 0 && !calls_.contains(begin.call));
  const auto call = calls_.emplace(begin.call, Call{}).first;
  call->second.begin = begin;
  call->second.context = begin.context;
  absl::Status status;
  if (now_ >= begin.deadline) {
    status = absl::DeadlineExceededError("the call's deadline had passed when it came");
  } else {
    switch (begin.kind) {
      case Kind::kCreate:
        status = BeginCreate(call->second);
        break;
      case Kind::kFork:
        status = BeginFork(call->second);
        break;
      case Kind::kTruncate:
        status = BeginTruncate(call->second);
        break;
      case Kind::kStep:
        status = BeginStep(call->second);
        break;
      case Kind::kRelease:
        status = BeginRelease(call->second);
        if (status.ok() && call->second.pending.empty()) return Succeed(call);
        break;
      case Kind::kAppend:
      case Kind::kAttend:
        status = BeginWork(call->second);
        if (status.ok() && call->second.workers.empty()) return Succeed(call);  // a repetition
        break;
    }
  }
  if (status.ok()) return;
  // Nothing was started, so nothing needs undoing.
  calls_.erase(call);
  Emit(action::Finish{begin.call, std::move(status), epoch_, begin.context, 0, {}});
}

absl::Status CoordinatorCore::BeginWork(Call& call) {
  const event::Begin& begin = call.begin;
  ANNULUS_ASSIGN_OR_RETURN(Context * context, FindWhole(begin.context));
  ANNULUS_ASSIGN_OR_RETURN(Layer * layer, FindLayer(*context, begin.layer));
  const bool appends = begin.kind == Kind::kAppend;
  if (begin.tokens < 1 || begin.tokens > kContextTokensMax) {
    return Bad(appends ? "tokens of k" : "tokens of q", begin.tokens,
               absl::StrCat("1 to ", kContextTokensMax));
  }
  const ShardMap& map = *context->map;
  call.epoch = map.epoch;
  std::vector<std::string> data_addresses;
  if (appends) {
    const TokenRange tokens = RangeOf(begin.begin, begin.tokens);
    ANNULUS_ASSIGN_OR_RETURN(const bool is_new, CheckAppend(map, *layer, tokens, begin.key));
    if (!is_new) return absl::OkStatus();
    ANNULUS_RETURN_IF_ERROR(AdmitAppend(call, map, &data_addresses));
    layer->appending = begin.call;
    ++layer->turn;
  } else {
    ANNULUS_RETURN_IF_ERROR(CheckAttend(*layer, begin));
    ANNULUS_RETURN_IF_ERROR(Reserve(AttendBytesOf(map.spec, begin.tokens), call));
  }
  call.horizon = layer->horizon;
  for (const Holder& holder : map.Receivers(appends)) call.workers.push_back(holder.worker);
  Emit(action::Admit{begin.call,
                     context->map,
                     layer->horizon,
                     {layer->turn, begin.key},
                     std::move(data_addresses)});
  return absl::OkStatus();
}

absl::Status CoordinatorCore::AdmitAppend(Call& call, const ShardMap& map,
                                          std::vector<std::string>* data_addresses) {
  if (!call.begin.direct) return Reserve(AppendBytesOf(map.spec, call.begin.tokens), call);
  for (const Holder& holder : map.holders) {
    const Member& member = workers_.at(holder.worker);
    if (member.status.data_address.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat(member.label, " has no data port; upload by relay (ClientOptions::upload)"));
    }
    data_addresses->push_back(member.status.data_address);
  }
  return CheckRoomForCall();
}

absl::StatusOr<CoordinatorCore::Context*> CoordinatorCore::FindWhole(ContextId id) {
  const auto found = contexts_.find(id);
  if (found == contexts_.end() || !found->second.created) return WhyUnknown(id);
  if (!found->second.lost_to.empty()) {
    return absl::DataLossError(absl::StrCat("context ", id, " lost KV with ", found->second.lost_to,
                                            "; release it, create it again and upload it"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckAllThere(found->second));
  ANNULUS_RETURN_IF_ERROR(CheckNotSwitching(id));
  return &found->second;
}

absl::StatusOr<CoordinatorCore::Layer*> CoordinatorCore::FindLayer(Context& context, int layer) {
  const int layers = static_cast<int>(context.layers.size());
  if (layer < 0 || layer >= layers) return Bad("layer", layer, absl::StrCat("0 to ", layers - 1));
  return &context.layers[static_cast<size_t>(layer)];
}

absl::StatusOr<bool> CoordinatorCore::CheckAppend(const ShardMap& map, const Layer& layer,
                                                  TokenRange tokens, RequestKey key) const {
  if (layer.appending != 0) {
    return absl::UnavailableError(
        "another append to this layer, or an earlier try of this one, is in flight; retry after "
        "it");
  }
  if (key.client != 0 && key == layer.last_key) {
    if (tokens != layer.last_tokens) {
      return Bad("sequence of the request's key", static_cast<int64_t>(key.sequence),
                 absl::StrCat("a new one: it appended tokens [", layer.last_tokens.begin, ", ",
                              layer.last_tokens.end, ")"));
    }
    if (layer.tokens >= tokens.end) return false;
    return absl::AbortedError("what this request appended has been truncated since");
  }
  if (MoveHoldsOff(map.context)) {
    return absl::UnavailableError("the context is being moved; retry");
  }
  if (tokens.begin != layer.tokens) {
    return Bad("start", tokens.begin, absl::StrCat(layer.tokens, ", the layer's committed tokens"));
  }
  const ContextSpec& spec = map.spec;
  const int64_t tokens_max = spec.tokens_expected > 0 ? spec.tokens_expected : kContextTokensMax;
  if (tokens.size() > tokens_max - tokens.begin) {
    return Bad("tokens of k", tokens.size(),
               absl::StrCat("at most ", tokens_max - tokens.begin, ", since the context ends at ",
                            tokens_max));
  }
  return true;
}

absl::Status CoordinatorCore::CheckAttend(const Layer& layer, const event::Begin& begin) {
  if (begin.kv_len < 1 || begin.kv_len > layer.tokens) {
    return Bad(
        "kv_len", begin.kv_len,
        absl::StrCat("1 to ", layer.tokens, ", the committed tokens of layer ", begin.layer));
  }
  if (begin.tokens > begin.kv_len || begin.begin != begin.kv_len - begin.tokens) {
    return Bad("q_start", begin.begin,
               absl::StrCat("kv_len ", begin.kv_len, " − ", begin.tokens,
                            " query tokens: queries are the last tokens"));
  }
  return absl::OkStatus();
}

absl::Status CoordinatorCore::Reserve(int64_t bytes, Call& call) {
  if (bytes > limits_.request_bytes_max) {
    return absl::InvalidArgumentError(absl::StrCat("the call's tensors take ", bytes,
                                                   " bytes with their answer, expected at "
                                                   "most ",
                                                   limits_.request_bytes_max,
                                                   " (request_bytes_max); send fewer tokens "
                                                   "at once"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckRoomForCall());
  if (bytes > limits_.in_flight_bytes_max - in_flight_bytes_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("in_flight_bytes_max is ", limits_.in_flight_bytes_max, ": ", in_flight_bytes_,
                     " are in flight, this call needs ", bytes, " more"));
  }
  call.bytes = bytes;
  in_flight_bytes_ += bytes;
  return absl::OkStatus();
}

absl::Status CoordinatorCore::CheckRoomForCall() const {
  if (static_cast<int64_t>(calls_.size()) <= limits_.in_flight_max) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("in_flight_max is ", limits_.in_flight_max, " and as many calls are in flight"));
}

// Between its admission and its sending an Attend may have been overtaken by calls that leave it
// without what it reads.
absl::Status CoordinatorCore::StillThere(const Call& call) const {
  if (call.begin.kind != Kind::kAttend) return absl::OkStatus();
  const Context& context = contexts_.at(call.context);
  const Layer& layer = context.layers[static_cast<size_t>(call.begin.layer)];
  return CheckOvertaken(*context.map, layer, call.begin.kv_len, call.horizon);
}

absl::Status CoordinatorCore::CheckOvertaken(const ShardMap& map, const Layer& layer,
                                             int64_t kv_len, int64_t horizon) {
  if (layer.tokens < kv_len) return absl::AbortedError("the layer was truncated during the call");
  if (map.spec.kv_efficient && layer.horizon != horizon) {
    return absl::UnavailableError("the layer let go of blocks during the call; retry");
  }
  return absl::OkStatus();
}

void CoordinatorCore::On(const event::Prepared& prepared) {
  const auto call = calls_.find(prepared.call);
  if (call == calls_.end()) return;  // it has failed meanwhile
  if (call->second.begin.kind == Kind::kStep) return StepPrepared(call, prepared);
  if (absl::Status there = StillThere(call->second); !there.ok()) {
    return Fail(call, std::move(there));
  }
  if (call->second.begin.kind == Kind::kAppend) {
    const event::Begin& begin = call->second.begin;
    contexts_.at(call->second.context)
        .layers[static_cast<size_t>(begin.layer)]
        .Advance(begin.begin);
  }
  if (prepared.ranks.empty()) return Succeed(call);
  for (const int rank : prepared.ranks) {
    const WorkerId worker = call->second.workers.at(static_cast<size_t>(rank));
    call->second.pending.emplace(worker, rank);
    Emit(action::SendTask{workers_.at(worker).peer, prepared.call, rank});
  }
}

void CoordinatorCore::On(const event::GiveUp& give_up) {
  const auto call = calls_.find(give_up.call);
  if (call != calls_.end()) Fail(call, give_up.why);
}

void CoordinatorCore::OnDone(WorkerId id, const wire::Done& done) {
  if (IsMoveRequest(done.request)) return OnMoveDone(id, done);
  const auto found = calls_.find(done.request);
  if (found == calls_.end()) return;  // late: the call has ended
  Call& call = found->second;
  const auto pending = call.pending.find(id);
  if (pending == call.pending.end()) return;  // a second answer
  if (done.epoch != call.epoch) {
    return Fail(found,
                absl::InternalError(absl::StrCat(workers_.at(id).label, " answered at epoch ",
                                                 done.epoch, ", expected ", call.epoch)));
  }
  const int rank = pending->second;
  call.pending.erase(pending);
  if (!done.status.ok()) return OnFailedRank(found, id, done.status);
  const auto context = contexts_.find(call.context);
  if (context != contexts_.end()) NoteBytes(context->second, id, done.context_kv_bytes);
  if (!call.failure.ok()) {
    if (call.pending.empty()) Fail(found, call.failure);
    return;
  }
  if (call.begin.kind == Kind::kAttend) Emit(action::Deliver{done.request, rank});
  if (call.pending.empty()) Succeed(found);
}

void CoordinatorCore::OnFailedRank(Calls::iterator found, WorkerId id, const absl::Status& status) {
  Call& call = found->second;
  const absl::Status named(status.code(),
                           absl::StrCat(workers_.at(id).label, ": ", status.message()));
  if (!MayBeEcho(status)) return Fail(found, named);
  if (call.failure.ok()) {
    call.failure = named;
    call.failure_due = now_ + kEchoWait;
    for (const auto& [worker, rank] : call.pending) {
      Emit(action::Send{workers_.at(worker).peer, wire::Cancel{found->first}});
    }
  }
  if (call.pending.empty()) Fail(found, call.failure);
}

void CoordinatorCore::Layer::Commit(TokenRange range, RequestKey key) {
  tokens = range.end;
  last_key = key;
  last_tokens = range;
}

void CoordinatorCore::Succeed(Calls::iterator found) {
  const CallId id = found->first;
  const Call call = std::move(found->second);
  calls_.erase(found);
  in_flight_bytes_ -= call.bytes;
  int64_t tokens = 0;
  if (call.begin.kind == Kind::kCreate || call.begin.kind == Kind::kFork) {
    contexts_.at(call.context).created = true;
  } else if (call.begin.kind == Kind::kAppend) {
    const TokenRange range = RangeOf(call.begin.begin, call.begin.tokens);
    Layer& layer = contexts_.at(call.context).layers[static_cast<size_t>(call.begin.layer)];
    if (layer.appending == id) {
      layer.appending = 0;
      layer.Commit(range, call.begin.key);
    }
    tokens = range.end;
  }
  Emit(action::Finish{id, absl::OkStatus(), call.epoch, call.context, tokens, {}});
}

void CoordinatorCore::Fail(Calls::iterator found, absl::Status why) {
  if (found->second.begin.kind == Kind::kStep) return EndStep(found, why);
  const CallId id = found->first;
  const Call call = std::move(found->second);
  calls_.erase(found);
  in_flight_bytes_ -= call.bytes;
  Undo(id, call);
  Emit(action::Finish{id, std::move(why), call.epoch, call.context, 0, {}});
}

// Leaves the workers as they were before the call. Links keep order, so whatever comes next on the
// same context finds it so.
void CoordinatorCore::Undo(CallId id, const Call& call) {
  const auto found = contexts_.find(call.context);
  if (found == contexts_.end()) return;
  Context& context = found->second;
  switch (call.begin.kind) {
    case Kind::kCreate:
    case Kind::kFork: {
      const ShardMapPtr map = context.map;
      contexts_.erase(found);
      return SendToHolders(*map, wire::Release{0, map->epoch, map->storage});
    }
    case Kind::kAppend: {
      Layer& layer = context.layers[static_cast<size_t>(call.begin.layer)];
      layer.appending = 0;
      return SendToHolders(*context.map,
                           wire::Trim{context.map->storage, call.begin.layer, layer.tokens});
    }
    case Kind::kAttend:
      return CancelPending(id, call);
    case Kind::kTruncate:  // is done once it has begun
    case Kind::kStep:      // EndStep
    case Kind::kRelease:
      return;
  }
}

void CoordinatorCore::CancelPending(CallId id, const Call& call) {
  for (const auto& [worker, rank] : call.pending) {
    const auto member = workers_.find(worker);
    if (member == workers_.end() || !IsUp(member->second)) continue;
    Emit(action::Send{member->second.peer, wire::Cancel{id}});
  }
}

void CoordinatorCore::SendToHolders(const ShardMap& map, const wire::Body& body) {
  for (const Holder& holder : map.holders) {
    const auto member = workers_.find(holder.worker);
    if (member == workers_.end() || !IsUp(member->second)) continue;
    Emit(action::Send{member->second.peer, body});
  }
}

}  // namespace annulus
