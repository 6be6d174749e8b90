// The life of a call: admitted, prepared by its caller, sent to ranks, answered, finished.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "runtime/coordinator/core.h"
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

absl::Status Bad(absl::string_view field, int64_t value, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", expected ", expected));
}

int64_t BytesOf(const ContextSpec& spec, const event::Begin& begin) {
  if (begin.kind == Kind::kAppend) return begin.tokens * spec.kv_heads * TokenBytes(spec);
  const int64_t q_row = spec.head_dim * static_cast<int64_t>(SizeOf(spec.dtype));
  const int64_t answer_row = (spec.v_head_dim + 1) * static_cast<int64_t>(sizeof(float));
  return begin.tokens * spec.heads * (q_row + answer_row);
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
  } else if (begin.kind == Kind::kCreate) {
    status = BeginCreate(call->second);
  } else if (begin.kind == Kind::kRelease) {
    status = BeginRelease(call->second);
    if (status.ok() && call->second.pending.empty()) return Succeed(call);
  } else {
    status = BeginWork(call->second);
  }
  if (status.ok()) return;
  // Nothing was started, so nothing needs undoing.
  calls_.erase(call);
  Emit(action::Finish{begin.call, std::move(status), epoch_, begin.context, 0});
}

absl::Status CoordinatorCore::BeginCreate(Call& call) {
  if (peers_.empty()) {
    return absl::UnavailableError("no worker is ready; retry once one has joined");
  }
  if (static_cast<int64_t>(contexts_.size()) >= limits_.contexts_max) {
    return absl::ResourceExhaustedError(absl::StrCat("contexts_max is ", limits_.contexts_max,
                                                     " and as many exist; release contexts"));
  }
  if (static_cast<int64_t>(calls_.size()) > limits_.in_flight_max) {
    return absl::ResourceExhaustedError(absl::StrCat("in_flight_max is ", limits_.in_flight_max,
                                                     " and as many calls are in flight"));
  }
  const ContextId id = ++last_context_;
  Context context;
  context.map = {id, epoch_, call.begin.spec, {}};
  context.tokens.resize(call.begin.spec.layers);
  context.appending.resize(call.begin.spec.layers);
  wire::Open open{call.begin.call, epoch_, id, call.begin.spec, 0, {}};
  for (const auto& [worker, member] : workers_) {
    if (member.status.state != "ready") continue;
    call.pending.emplace(worker, static_cast<int>(context.map.workers.size()));
    context.map.workers.push_back(worker);
    open.addresses.push_back(member.status.address);
  }
  context.kv_bytes.resize(context.map.workers.size());
  for (const auto& [worker, rank] : call.pending) {
    open.rank = rank;
    Emit(action::Send{workers_.at(worker).peer, open});
  }
  call.context = id;
  call.epoch = epoch_;
  contexts_.emplace(id, std::move(context));
  return absl::OkStatus();
}

absl::Status CoordinatorCore::BeginRelease(Call& call) {
  const auto found = contexts_.find(call.context);
  if (found == contexts_.end() || !found->second.created) {
    return absl::NotFoundError(absl::StrCat("context ", call.context, " does not exist"));
  }
  const ShardMap map = std::move(found->second.map);
  call.epoch = map.epoch;
  for (auto next = calls_.begin(); next != calls_.end();) {
    const auto other = next++;
    if (other->second.context != map.context || &other->second == &call) continue;
    Fail(other, absl::CancelledError(absl::StrCat("context ", map.context, " was released")));
  }
  contexts_.erase(map.context);
  for (size_t rank = 0; rank < map.workers.size(); ++rank) {
    if (workers_.contains(map.workers[rank]) &&
        workers_.at(map.workers[rank]).status.state == "ready") {
      call.pending.emplace(map.workers[rank], static_cast<int>(rank));
    }
  }
  SendToRanks(map, wire::Release{call.begin.call, map.epoch, map.context});
  return absl::OkStatus();
}

absl::Status CoordinatorCore::BeginWork(Call& call) {
  const event::Begin& begin = call.begin;
  const auto found = contexts_.find(begin.context);
  if (found == contexts_.end() || !found->second.created) {
    return absl::NotFoundError(absl::StrCat("context ", begin.context, " does not exist"));
  }
  Context& context = found->second;
  if (!context.lost_to.empty()) {
    return absl::DataLossError(absl::StrCat("context ", begin.context, " lost KV with ",
                                            context.lost_to,
                                            "; release it, create it again and upload it"));
  }
  const int layers = context.map.spec.layers;
  if (begin.layer < 0 || begin.layer >= layers) {
    return Bad("layer", begin.layer, absl::StrCat("0 to ", layers - 1));
  }
  if (begin.tokens < 1 || begin.tokens > kContextTokensMax) {
    return Bad(begin.kind == Kind::kAppend ? "tokens of k" : "tokens of q", begin.tokens,
               absl::StrCat("1 to ", kContextTokensMax));
  }
  ANNULUS_RETURN_IF_ERROR(begin.kind == Kind::kAppend ? CheckAppend(context, begin)
                                                      : CheckAttend(context, begin));
  ANNULUS_RETURN_IF_ERROR(Reserve(context.map.spec, call));
  if (begin.kind == Kind::kAppend) context.appending[begin.layer] = begin.call;
  call.epoch = context.map.epoch;
  Emit(action::Admit{begin.call, context.map});
  return absl::OkStatus();
}

absl::Status CoordinatorCore::CheckAppend(const Context& context, const event::Begin& begin) const {
  if (context.appending[begin.layer] != 0) {
    return absl::UnavailableError(
        absl::StrCat("another append to layer ", begin.layer, " is in flight; retry after it"));
  }
  const int64_t committed = context.tokens[begin.layer];
  if (begin.begin != committed) {
    return Bad("start", begin.begin, absl::StrCat(committed, ", the layer's committed tokens"));
  }
  const int64_t expected = context.map.spec.tokens_expected;
  const int64_t tokens_max = expected > 0 ? expected : kContextTokensMax;
  if (begin.tokens > tokens_max - begin.begin) {
    return Bad("tokens of k", begin.tokens,
               absl::StrCat("at most ", tokens_max - begin.begin, ", since the context ends at ",
                            tokens_max));
  }
  return absl::OkStatus();
}

absl::Status CoordinatorCore::CheckAttend(const Context& context, const event::Begin& begin) const {
  const int64_t committed = context.tokens[begin.layer];
  if (begin.kv_len < 1 || begin.kv_len > committed) {
    return Bad("kv_len", begin.kv_len,
               absl::StrCat("1 to ", committed, ", the committed tokens of layer ", begin.layer));
  }
  if (begin.tokens > begin.kv_len || begin.begin != begin.kv_len - begin.tokens) {
    return Bad("q_start", begin.begin,
               absl::StrCat("kv_len ", begin.kv_len, " − ", begin.tokens,
                            " query tokens: queries are the last tokens"));
  }
  return absl::OkStatus();
}

absl::Status CoordinatorCore::Reserve(const ContextSpec& spec, Call& call) {
  const int64_t bytes = BytesOf(spec, call.begin);
  if (bytes > limits_.request_bytes_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        call.begin.tokens, " tokens take ", bytes, " bytes with their answer, expected at most ",
        limits_.request_bytes_max, " (request_bytes_max); send fewer at once"));
  }
  if (static_cast<int64_t>(calls_.size()) > limits_.in_flight_max) {
    return absl::ResourceExhaustedError(absl::StrCat("in_flight_max is ", limits_.in_flight_max,
                                                     " and as many calls are in flight"));
  }
  if (bytes > limits_.in_flight_bytes_max - in_flight_bytes_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("in_flight_bytes_max is ", limits_.in_flight_bytes_max, ": ", in_flight_bytes_,
                     " are in flight, this call needs ", bytes, " more"));
  }
  call.bytes = bytes;
  in_flight_bytes_ += bytes;
  return absl::OkStatus();
}

void CoordinatorCore::On(const event::Prepared& prepared) {
  const auto call = calls_.find(prepared.call);
  if (call == calls_.end()) return;  // it has failed meanwhile
  if (prepared.ranks.empty()) return Succeed(call);
  const Context& context = contexts_.at(call->second.context);
  for (const int rank : prepared.ranks) {
    const WorkerId worker = context.map.workers.at(rank);
    call->second.pending.emplace(worker, rank);
    Emit(action::SendTask{workers_.at(worker).peer, prepared.call, rank});
  }
}

void CoordinatorCore::On(const event::GiveUp& give_up) {
  const auto call = calls_.find(give_up.call);
  if (call != calls_.end()) Fail(call, give_up.why);
}

void CoordinatorCore::OnDone(WorkerId id, const wire::Done& done) {
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
  if (context != contexts_.end()) context->second.kv_bytes[rank] = done.context_kv_bytes;
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

void CoordinatorCore::Succeed(Calls::iterator found) {
  const CallId id = found->first;
  const Call call = std::move(found->second);
  calls_.erase(found);
  in_flight_bytes_ -= call.bytes;
  int64_t tokens = 0;
  if (call.begin.kind == Kind::kCreate) {
    contexts_.at(call.context).created = true;
  } else if (call.begin.kind == Kind::kAppend) {
    Context& context = contexts_.at(call.context);
    context.appending[call.begin.layer] = 0;
    context.tokens[call.begin.layer] = tokens = call.begin.begin + call.begin.tokens;
  }
  Emit(action::Finish{id, absl::OkStatus(), call.epoch, call.context, tokens});
}

void CoordinatorCore::Fail(Calls::iterator found, absl::Status why) {
  const CallId id = found->first;
  const Call call = std::move(found->second);
  calls_.erase(found);
  in_flight_bytes_ -= call.bytes;
  Undo(id, call);
  Emit(action::Finish{id, std::move(why), call.epoch, call.context, 0});
}

// Leaves the workers as they were before the call. Links keep order, so whatever comes next on the
// same context finds it so.
void CoordinatorCore::Undo(CallId id, const Call& call) {
  const auto found = contexts_.find(call.context);
  if (found == contexts_.end()) return;
  Context& context = found->second;
  switch (call.begin.kind) {
    case Kind::kCreate: {
      const ShardMap map = std::move(context.map);
      contexts_.erase(found);
      return SendToRanks(map, wire::Release{0, map.epoch, map.context});
    }
    case Kind::kAppend: {
      const int layer = call.begin.layer;
      context.appending[layer] = 0;
      return SendToRanks(context.map, wire::Trim{call.context, layer, context.tokens[layer]});
    }
    case Kind::kAttend:
      for (const auto& [worker, rank] : call.pending) {
        const auto member = workers_.find(worker);
        if (member == workers_.end() || member->second.status.state != "ready") continue;
        Emit(action::Send{member->second.peer, wire::Cancel{id}});
      }
      return;
    case Kind::kRelease:
      return;
  }
}

void CoordinatorCore::SendToRanks(const ShardMap& map, const wire::Body& body) {
  for (const WorkerId worker : map.workers) {
    const auto member = workers_.find(worker);
    if (member == workers_.end() || member->second.status.state != "ready") continue;
    Emit(action::Send{member->second.peer, body});
  }
}

}  // namespace annulus
