// Membership, heartbeats and loss. What calls do is in core_calls.cc.
#include "runtime/coordinator/core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "runtime/store/context_layout.h"

namespace annulus {
namespace {

constexpr size_t kWorkersMax = 1 << 16;
// Workers that were lost stay visible in Status, but not forever.
constexpr int kLostShownMax = 64;
constexpr size_t kNameBytesMax = 64;

}  // namespace

Actions CoordinatorCore::Handle(absl::Time now, const Event& event) {
  // A coordinator that itself stood still has heard nobody; that is not the workers' silence.
  if (now_ != absl::InfinitePast() && now - now_ > heartbeat_timeout_ / 2) {
    for (auto& [id, member] : workers_) member.heard = now;
    doubt_until_ = now + 2 * heartbeat_timeout_;
  }
  now_ = std::max(now_, now);
  if (recovery_until_ == absl::InfiniteFuture())
    recovery_until_ = now_ + incarnation_.recovery_wait;
  actions_.clear();
  std::visit([this](const auto& e) { On(e); }, event);
  StepMove();
  return std::move(actions_);
}

absl::Time CoordinatorCore::NextTimer() const {
  absl::Time next = peers_.empty() ? absl::InfiniteFuture() : now_ + heartbeat_timeout_ / 4;
  for (const auto& [peer, id] : peers_) {
    next = std::min(next, workers_.at(id).heard + heartbeat_timeout_);
  }
  if (!recovering_.empty()) next = std::min(next, recovery_until_);
  next = std::min(next, absent_due_);
  for (const auto& [id, call] : calls_) {
    next = std::min({next, call.begin.deadline, call.failure_due});
  }
  return next;
}

void CoordinatorCore::On(const event::Heard& heard) {
  if (const auto* hello = std::get_if<wire::Hello>(&heard.body)) return OnHello(heard.peer, *hello);
  const auto peer = peers_.find(heard.peer);
  if (peer == peers_.end()) return;  // cut off, or never joined
  const WorkerId id = peer->second;
  Member& member = workers_.at(id);
  member.heard = now_;
  if (const auto* heartbeat = std::get_if<wire::Heartbeat>(&heard.body)) {
    member.status.kv_bytes = heartbeat->kv_bytes;
    member.kv_bytes_since = 0;
    if (heartbeat->leaves && member.status.state == "ready") {
      member.status.state = "draining";
      ++epoch_;
    }
    member.may_leave = member.status.state == "draining" && MayLeave(id);
    Emit(action::Send{heard.peer, wire::HeartbeatSeen{member.may_leave}});
  } else if (const auto* done = std::get_if<wire::Done>(&heard.body)) {
    OnDone(id, *done);
  } else if (const auto* step_done = std::get_if<wire::StepDone>(&heard.body)) {
    OnStepDone(id, *step_done);
  } else if (const auto* inventory = std::get_if<wire::Inventory>(&heard.body)) {
    OnInventory(id, *inventory);
  } else if (!std::holds_alternative<wire::Spans>(heard.body)) {
    Ban(id, absl::InternalError("it sent a message that only a coordinator sends"));
  }
}

void CoordinatorCore::OnHello(PeerId peer, const wire::Hello& hello) {
  if (peers_.contains(peer)) return;
  if (hello.protocol != wire::kProtocol || peers_.size() >= kWorkersMax) {
    return Emit(action::Drop{peer});
  }
  if (!MakeWayFor(hello)) return Emit(action::Send{peer, wire::Fenced{}});
  const WorkerId id = ++last_worker_;
  ++epoch_;
  Member member;
  member.peer = peer;
  member.heard = now_;
  member.label = absl::StrCat("worker ", id);
  if (!hello.name.empty()) {
    absl::StrAppend(&member.label, " (",
                    absl::CEscape(absl::string_view(hello.name).substr(0, kNameBytesMax)), ")");
  }
  member.status = {.id = id,
                   .state = "ready",
                   .backend = hello.backend,
                   .address = hello.address,
                   .kv_bytes = 0,
                   .kv_bytes_limit = hello.kv_bytes_limit,
                   .data_address = hello.data_address};
  member.inventories_due = hello.contexts;
  member.had_another = hello.coordinator != 0;
  Emit(action::Send{peer, wire::Welcome{id, incarnation_.number}});
  Emit(action::WorkerJoined{member.label, hello.backend});
  workers_.emplace(id, std::move(member));
  peers_.emplace(peer, id);
}

void CoordinatorCore::On(const event::PeerDown& down) {
  const auto peer = peers_.find(down.peer);
  if (peer != peers_.end()) LoseWorker(peer->second, down.why);
}

void CoordinatorCore::On(const event::SendFailed& failed) {
  const auto call = calls_.find(failed.call);
  if (failed.call != 0 && absl::IsResourceExhausted(failed.why)) {
    if (call != calls_.end()) Fail(call, failed.why);
    if (move_.has_value() && move_->request == failed.call) GiveUpMove(failed.why);
    return;
  }
  // A worker that has missed a message no longer knows what it should.
  const auto peer = peers_.find(failed.peer);
  if (peer != peers_.end()) LoseWorker(peer->second, failed.why);
}

void CoordinatorCore::On(const event::Tick&) {
  if (!InRecovery()) EndRecovery();
  if (now_ >= absent_due_) EndAbsences();
  std::vector<WorkerId> silent;
  for (const auto& [peer, id] : peers_) {
    if (now_ - workers_.at(id).heard >= heartbeat_timeout_) silent.push_back(id);
  }
  for (const WorkerId id : silent) {
    LoseWorker(id, absl::DeadlineExceededError(absl::StrCat(
                       "no heartbeat for ", absl::FormatDuration(heartbeat_timeout_))));
  }
  for (auto next = calls_.begin(); next != calls_.end();) {
    const auto call = next++;
    if (now_ >= call->second.failure_due) {
      Fail(call, call->second.failure);
    } else if (now_ >= call->second.begin.deadline) {
      Fail(call, absl::DeadlineExceededError("the call's deadline passed"));
    }
  }
}

void CoordinatorCore::Ban(WorkerId id, const absl::Status& why) {
  workers_.at(id).banned = true;
  LoseWorker(id, why);
}

void CoordinatorCore::LoseWorker(WorkerId id, const absl::Status& why) {
  Member& member = workers_.at(id);
  peers_.erase(member.peer);
  member.status.state = member.may_leave ? "left" : "lost";
  member.status.kv_bytes = 0;
  ++epoch_;
  Emit(action::Drop{member.peer});
  if (member.may_leave) {
    Emit(action::WorkerLeft{member.label});
  } else {
    Emit(action::WorkerLost{member.label, why});
  }

  for (auto& [context_id, context] : contexts_) LoseHolder(context, id);
  for (auto next = recovering_.begin(); next != recovering_.end();) {
    const auto recovering = next++;
    recovering->second.inventories.erase(id);
    if (recovering->second.inventories.empty()) recovering_.erase(recovering);
  }
  EndStaleCalls(absl::UnavailableError(
      absl::StrCat(member.label, " was lost during the call: ", why.message())));
  for (auto next = calls_.begin(); next != calls_.end();) {
    const auto call = next++;
    if (call->second.pending.erase(id) == 0 || !call->second.pending.empty()) continue;
    if (call->second.begin.kind == event::Begin::Kind::kRelease) {
      Succeed(call);  // what was lost needs no release
    } else if (call->second.begin.kind == event::Begin::Kind::kStep) {
      EndStepIfDone(call);
    }
  }
  LoseMover(id);
  ForgetOldLosses();
}

// Calls on contexts that went on at another epoch do not.
void CoordinatorCore::EndStaleCalls(const absl::Status& why) {
  for (auto next = calls_.begin(); next != calls_.end();) {
    const auto call = next++;
    if (call->second.begin.kind == event::Begin::Kind::kRelease) continue;
    if (call->second.begin.kind == event::Begin::Kind::kStep) {
      EndStaleItems(call, why);
      continue;
    }
    const auto context = contexts_.find(call->second.context);
    if (context != contexts_.end() && context->second.map->epoch != call->second.epoch) {
      Fail(call, why);
    }
  }
}

void CoordinatorCore::ForgetOldLosses() {
  size_t lost = workers_.size() - peers_.size();
  for (auto next = workers_.begin(); next != workers_.end() && lost > kLostShownMax;) {
    const auto worker = next++;
    if (IsUp(worker->second)) continue;
    workers_.erase(worker);
    --lost;
  }
}

std::string CoordinatorCore::StateOf(const Context& context) const {
  const ShardMap& map = *context.map;
  if (!context.lost_to.empty()) return "lost";
  if (!context.absent.empty()) return "recovering";
  if (std::ssize(map.holders) < int64_t{map.world} * map.spec.replicas) return "degraded";
  return move_.has_value() && move_->context == map.context ? "moving" : "ok";
}

ContextInfo CoordinatorCore::InfoOf(const Context& context) const {
  ContextInfo info;
  const ShardMap& map = *context.map;
  info.id = map.context;
  info.epoch = map.epoch;
  info.spec = map.spec;
  for (const Layer& layer : context.layers) info.tokens.push_back(layer.tokens);
  for (const auto& [worker, bytes] : context.kv_bytes) info.kv_bytes += bytes;
  info.dense_kv_bytes = DenseBytes(map.spec, map.world, info.tokens) * map.spec.replicas;
  info.state = StateOf(context);
  return info;
}

absl::StatusOr<ContextInfo> CoordinatorCore::Describe(ContextId id) const {
  const auto found = contexts_.find(id);
  if (found == contexts_.end() || !found->second.created) return WhyUnknown(id);
  return InfoOf(found->second);
}

absl::StatusOr<std::vector<ContextInfo>> CoordinatorCore::List(const ListRequest& request) const {
  if (request.limit < 1 || request.limit > kListMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("limit is ", request.limit, ", expected 1 to ", kListMax));
  }
  if (!recovering_.empty()) {
    return absl::UnavailableError(
        absl::StrCat(recovering_.size(), " contexts are being recovered after a restart; retry"));
  }
  std::vector<ContextInfo> infos;
  for (auto next = contexts_.upper_bound(request.after);
       next != contexts_.end() && static_cast<int>(infos.size()) < request.limit; ++next) {
    if (next->second.created) infos.push_back(InfoOf(next->second));
  }
  return infos;
}

ClusterStatus CoordinatorCore::Status(absl::Time now) const {
  ClusterStatus status;
  status.epoch = epoch_;
  status.in_flight = static_cast<int64_t>(calls_.size());
  status.in_flight_bytes = in_flight_bytes_;
  for (const auto& [id, context] : contexts_) {
    if (context.created) status.contexts.push_back(InfoOf(context));
  }
  for (const auto& [id, member] : workers_) {
    status.workers.push_back(member.status);
    status.workers.back().heartbeat_age_s = absl::ToDoubleSeconds(now - member.heard);
  }
  return status;
}

}  // namespace annulus
