#include "runtime/coordinator/coordinator_loop.h"

#include <utility>

#include "base/log.h"
#include "base/status.h"

namespace annulus {

CoordinatorLoop::CoordinatorLoop(Messenger& messenger, const CoordinatorLimits& limits,
                                 absl::Duration heartbeat_timeout, const Clock& clock,
                                 const Incarnation& incarnation, AdmittedWorkers* admitted)
    : messenger_(messenger),
      clock_(clock),
      admitted_(admitted),
      core_(limits, heartbeat_timeout, incarnation) {
  messenger_.SetHandlers({
      .on_message = [this](PeerId from, Message message) { OnMessage(from, std::move(message)); },
      .on_peer_down =
          [this](PeerId peer, absl::Status why) {
            incoming_.push_back({event::PeerDown{peer, std::move(why)}, {}});
          },
      .on_part =
          [this](PeerId peer) {
            incoming_.push_back({event::PartHeard{peer}, {}});
          },
  });
}

void CoordinatorLoop::OnMessage(PeerId from, Message message) {
  absl::StatusOr<wire::Body> body = wire::Decode(message);
  if (!body.ok()) return Distrust(from, body.status());
  if (const auto* hello = std::get_if<wire::Hello>(&*body)) {
    if (absl::Status may = CheckAdmitted(from, *hello); !may.ok()) {
      Log(LogLevel::kWarning, "worker refused", {{"worker", hello->name}, {"why", may.message()}});
      return Distrust(from, std::move(may));
    }
  }
  incoming_.push_back({event::Heard{from, *std::move(body)}, std::move(message.payload)});
}

absl::Status CoordinatorLoop::CheckAdmitted(PeerId from, const wire::Hello& hello) const {
  if (admitted_ == nullptr) return absl::OkStatus();
  ANNULUS_ASSIGN_OR_RETURN(const LinkKey key, messenger_.KeyOf(from));
  return admitted_->Check(key, hello.data_address, clock_.Now());
}

// Nothing that follows on this link can be trusted. Contract: no on_peer_down after this.
void CoordinatorLoop::Distrust(PeerId peer, absl::Status why) {
  messenger_.Disconnect(peer);
  incoming_.push_back({event::PeerDown{peer, std::move(why)}, {}});
}

void CoordinatorLoop::Begin(event::Begin begin, CallListener listener) {
  calls_[begin.call].listener = std::move(listener);
  incoming_.push_back({std::move(begin), {}});
}

void CoordinatorLoop::Prepared(CallId call, PreparedCall prepared) {
  const auto found = calls_.find(call);
  if (found == calls_.end()) return;
  event::Prepared event{
      call, {}, std::move(prepared.refused), std::move(prepared.merging), prepared.bytes};
  for (ShareMessage& to : prepared.messages) event.shares.push_back(to.share);
  found->second.messages = std::move(prepared.messages);
  incoming_.push_back({std::move(event), {}});
}

void CoordinatorLoop::GiveUp(CallId call, absl::Status why) {
  incoming_.push_back({event::GiveUp{call, std::move(why)}, {}});
}

// No lease is looked at before the use has begun.
absl::StatusOr<ShardMapPtr> CoordinatorLoop::LookToUse(ContextId id, int layer,
                                                       const Caller& caller) {
  absl::StatusOr<ShardMapPtr> map = core_.Look(id, layer, caller);
  if (map.ok()) incoming_.push_back({event::Use{id, 1}, {}});
  return map;
}

void CoordinatorLoop::GiveUpAll(const absl::Status& why) {
  for (const auto& [call, in_flight] : calls_) GiveUp(call, why);
}

void CoordinatorLoop::Handle() {
  HandleAll();
  messenger_.Deliver();
  HandleAll();
  if (clock_.Now() >= core_.NextTimer()) incoming_.push_back({event::Tick{}, {}});
  HandleAll();
}

void CoordinatorLoop::HandleAll() {
  while (!incoming_.empty()) {
    Incoming next = std::move(incoming_.front());
    incoming_.pop_front();
    Actions actions = core_.Handle(clock_.Now(), next.event);
    for (Action& action : actions) {
      std::visit([&](auto& act) { Do(act, next); }, action);
    }
  }
}

void CoordinatorLoop::SendOrReport(PeerId peer, CallId call, Message message) {
  absl::Status sent = messenger_.Send(peer, std::move(message));
  if (!sent.ok()) incoming_.push_back({event::SendFailed{peer, call, std::move(sent)}, {}});
}

void CoordinatorLoop::Tell(CallId call, CallNews news) {
  const auto found = calls_.find(call);
  if (found != calls_.end()) found->second.listener(std::move(news));
}

void CoordinatorLoop::Do(action::Send& send, Incoming&) {
  SendOrReport(send.peer, 0, wire::Encode(send.body));
}

void CoordinatorLoop::Do(action::SendTask& send, Incoming&) {
  for (ShareMessage& to : calls_.at(send.call).messages) {
    if (to.share.rank == send.rank) SendOrReport(send.peer, send.call, std::move(to.message));
  }
}

void CoordinatorLoop::Do(action::Drop& drop, Incoming&) {
  messenger_.Disconnect(drop.peer);
}

void CoordinatorLoop::Do(action::Admit& admit, Incoming&) {
  Tell(admit.call, std::move(admit));
}

void CoordinatorLoop::Do(action::Deliver& deliver, Incoming& cause) {
  auto& heard = std::get<event::Heard>(cause.event);
  Tell(deliver.call, ShareAnswer{deliver.rank, std::move(std::get<wire::WorkDone>(heard.body)),
                                 std::move(cause.payload)});
}

void CoordinatorLoop::Do(action::Finish& finish, Incoming&) {
  const CallId call = finish.call;
  Tell(call, std::move(finish));
  calls_.erase(call);
}

ClusterView CoordinatorLoop::View(size_t places_max) const {
  ClusterView view = view_;
  view.moving = core_.moving();
  view.contexts_recovering = core_.recovering();
  view.recovery_time = core_.recovery_time(clock_.Now());
  view.places = core_.Places(places_max);
  return view;
}

void CoordinatorLoop::Do(action::WorkerJoined& joined, Incoming&) {
  ++view_.workers_joined;
  messenger_.Trust(joined.peer);
  Log(LogLevel::kInfo, "worker joined", {{"worker", joined.label}, {"backend", joined.backend}});
}

void CoordinatorLoop::Do(action::MoveRead& read, Incoming&) {
  copy_.emplace(read);
}

void CoordinatorLoop::Do(action::MoveRows& rows, Incoming& cause) {
  absl::Status taken = copy_->Take(rows.rank, cause.payload);
  if (!taken.ok()) Distrust(std::get<event::Heard>(cause.event).peer, std::move(taken));
}

void CoordinatorLoop::Do(action::MoveFill& fill, Incoming&) {
  Buffer rows = copy_->Pack(fill.rank);
  fill.work.items[0].append_bytes = rows.size();
  view_.moved_bytes += rows.size();
  SendOrReport(fill.peer, fill.work.request, wire::Encode(fill.work, std::move(rows)));
}

void CoordinatorLoop::Do(action::MoveEnded& ended, Incoming&) {
  copy_.reset();
  ++(ended.status.ok() ? view_.moves_done : view_.moves_failed);
  if (ended.status.ok()) {
    return Log(LogLevel::kInfo, "context moved", {{"context", ended.context}});
  }
  Log(LogLevel::kWarning, "context not moved; it is tried again",
      {{"context", ended.context}, {"why", ended.status.ToString()}});
}

void CoordinatorLoop::Do(action::ContextEnded& ended, Incoming&) {
  Log(LogLevel::kInfo, "context released by the service",
      {{"context", ended.context},
       {"why", ended.why},
       {"kv_bytes", ended.kv_bytes},
       {"idle_s", absl::ToDoubleSeconds(ended.idle)}});
}

void CoordinatorLoop::Do(action::ContextLost& lost, Incoming&) {
  Log(LogLevel::kError, "context lost", {{"context", lost.context}, {"with", lost.with}});
}

void CoordinatorLoop::Do(action::WorkerLeft& left, Incoming&) {
  ++view_.workers_left;
  Log(LogLevel::kInfo, "worker left", {{"worker", left.label}});
}

void CoordinatorLoop::Do(action::WorkerLost& lost, Incoming&) {
  ++view_.workers_lost;
  Log(LogLevel::kWarning, "worker lost", {{"worker", lost.label}, {"why", lost.why.ToString()}});
}

}  // namespace annulus
