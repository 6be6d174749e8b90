#include "runtime/worker/coordinator_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "runtime/worker/merge_point.h"

namespace annulus {
namespace {

// An address may swallow what is sent there, so a worker connects anew. A coordinator that stands
// still answers the Hellos of all links when it goes on: better they are few.
constexpr int kAnswerWaitMax = 4;  // times the heartbeat_timeout
// The coordinator sends a Work to all of its ranks at once. A link to it that held one up for so
// many times the heartbeat_timeout would have been given up: other ranks' partials that have waited
// for so long are of a Work that has ended here.
constexpr int kEarlyTimes = 3;
// How often people are told that a worker waits.
constexpr absl::Duration kWordPeriod = absl::Seconds(10);

// The answer to a task that may be refused.
Message RefusalOf(const wire::Body& body, const absl::Status& why) {
  if (const auto* work = std::get_if<wire::Work>(&body)) {
    wire::WorkDone done;
    done.request = work->request;
    for (const wire::WorkItem& item : work->items) done.items.push_back({item.epoch, why});
    return wire::Encode(done);
  }
  const auto& read = std::get<wire::Read>(body);
  return wire::Encode(wire::Done{read.request, read.epoch, why});
}

}  // namespace

CoordinatorLink::CoordinatorLink(Messenger& messenger, Options options, const Clock& clock)
    : messenger_(messenger),
      options_(std::move(options)),
      clock_(clock),
      coordinator_address_(options_.coordinator_address),
      coordinator_key_(options_.coordinator_key),
      peers_(messenger) {
  messenger_.SetDoor(PeerDoor::kKeys);  // that of Welcome: nobody but other workers connects
  messenger_.SetHandlers({
      .on_message = [this](PeerId from, Message message) { OnMessage(from, std::move(message)); },
      .on_peer_down =
          [this](PeerId peer, absl::Status why) {
            if (peers_.Forget(peer)) TellLinkLost();
            if (peer != coordinator_) return;
            coordinator_ = 0;
            if (state_ == State::kReady) Vanish(std::move(why));
          },
      .on_part =
          [this](PeerId peer) {
            if (peer == coordinator_) heard_ = clock_.Now();
          },
  });
}

void CoordinatorLink::Connect() {
  absl::StatusOr<PeerId> peer =
      messenger_.Connect(coordinator_address_, coordinator_key_.value_or(LinkKey::Random()));
  if (!peer.ok()) return Lose(peer.status());  // malformed: trying again cannot help
  coordinator_ = *peer;
  connected_ = clock_.Now();
  Send(wire::Encode(wire::Hello{wire::kProtocol, options_.name, options_.backend,
                                messenger_.address(), options_.kv_bytes_limit, incarnation_,
                                inventory_.size(), options_.data_address}));
}

void CoordinatorLink::Send(Message message) {
  if (coordinator_ == 0) return;
  const absl::Status sent = messenger_.Send(coordinator_, std::move(message));
  // A coordinator that has missed an answer would wait for it. A link that is down is reported by
  // the messenger itself.
  if (!sent.ok() && !absl::IsNotFound(sent)) Lose(sent);
}

void CoordinatorLink::Leave() {
  leaves_ = true;
  next_beat_ = absl::InfinitePast();
}

void CoordinatorLink::SetCoordinatorAddress(const std::string& address,
                                            const std::optional<LinkKey>& key) {
  if (address == coordinator_address_ && key == coordinator_key_) return;
  coordinator_address_ = address;
  coordinator_key_ = key;
  if (state_ != State::kReady) Disconnect();
}

void CoordinatorLink::Disconnect() {
  if (coordinator_ != 0) messenger_.Disconnect(std::exchange(coordinator_, 0));
}

// The coordinator is gone, and perhaps will be back.
void CoordinatorLink::Vanish(absl::Status why) {
  if (options_.rejoin_timeout <= absl::ZeroDuration()) return Lose(std::move(why));
  state_ = State::kRejoining;
  why_lost_ = std::move(why);
  vanished_at_ = clock_.Now();
  give_up_at_ = vanished_at_ + options_.rejoin_timeout;
  next_word_ = vanished_at_ + absl::Seconds(1);
  answer_wait_ = options_.heartbeat_timeout;
  inventory_asked_ = inventory_taken_ = false;
  inventory_.clear();
  Disconnect();
  if (options_.grants != nullptr) options_.grants->RevokeAll();
  CancelAll();
  Log(LogLevel::kWarning, "coordinator gone; keeps its KV and tries to join again",
      {{"worker", id_}, {"coordinator", coordinator_name()}, {"why", why_lost_.ToString()}});
}

// The pauses between its words grow.
void CoordinatorLink::SayThatItWaits(absl::Time now) {
  if (now < next_word_) return;
  const absl::Duration waited = now - vanished_at_;
  next_word_ = now + std::min(waited, kWordPeriod);
  Log(LogLevel::kWarning, "still waits for its coordinator",
      {{"worker", id_},
       {"coordinator", coordinator_name()},
       {"for", absl::FormatDuration(absl::Trunc(waited, absl::Seconds(1)))},
       {"gives_up_in", absl::FormatDuration(absl::Trunc(give_up_at_ - now, absl::Seconds(1)))}});
}

void CoordinatorLink::End(absl::string_view what, absl::Status why) {
  if (state_ == State::kLost || state_ == State::kLeft) return;
  state_ = State::kLost;
  why_lost_ = std::move(why);
  Disconnect();
  if (options_.grants != nullptr) options_.grants->RevokeAll();
  CancelAll();
  Log(LogLevel::kError, what,
      {{"worker", id_}, {"coordinator", coordinator_name()}, {"why", why_lost_.ToString()}});
}

// What runs ends by itself. What waits for other ranks' partials waits no more.
void CoordinatorLink::CancelAll() {
  for (const auto& [request, running] : running_) running.cancel->store(true);
  std::erase_if(running_, [](const auto& entry) { return entry.second.merge_point != nullptr; });
  peers_.DropEarly();
}

void CoordinatorLink::Handle() {
  OnTime();
  messenger_.Deliver();
  OnTime();
}

void CoordinatorLink::OnTime() {
  const absl::Time now = clock_.Now();
  // A worker that itself stood still has heard nobody; what came meanwhile is handled first.
  if (now - handled_ > options_.heartbeat_timeout / 2) {
    heard_ = now;
    peers_.RenewEarly(now);
  }
  handled_ = now;
  if (state_ == State::kLost || state_ == State::kLeft) return;
  if (state_ == State::kReady && now - heard_ >= options_.heartbeat_timeout) {
    return Vanish(absl::DeadlineExceededError(
        absl::StrCat("no sign of it for ", absl::FormatDuration(options_.heartbeat_timeout))));
  }
  if (state_ == State::kRejoining) OnTimeRejoining(now);
  if (now < next_beat_) return;
  next_beat_ = now + options_.heartbeat_period;
  peers_.DropEarlyBefore(now - kEarlyTimes * options_.heartbeat_timeout);
  if (coordinator_ == 0) {
    if (state_ == State::kJoining || inventory_taken_) Connect();
  } else if (state_ == State::kReady) {
    Send(wire::Encode(
        wire::Heartbeat{options_.kv_bytes(), leaves_, options_.owners(wire::kOwnersMax)}));
  }
}

void CoordinatorLink::OnTimeRejoining(absl::Time now) {
  if (now >= give_up_at_) {
    return Lose(absl::DeadlineExceededError(
        absl::StrCat("no coordinator came back within ",
                     absl::FormatDuration(options_.rejoin_timeout), ": ", why_lost_.message())));
  }
  if (!inventory_asked_) {
    // Behind the tasks that the old coordinator sent, which may still change what is held.
    WorkerTask task;
    task.body = wire::Inventory{};
    inventory_asked_ = options_.take(task, /*must=*/true);
  }
  if (coordinator_ != 0 && now - connected_ >= answer_wait_) {
    Disconnect();
    answer_wait_ = std::min(2 * answer_wait_, kAnswerWaitMax * options_.heartbeat_timeout);
  }
  SayThatItWaits(now);
}

void CoordinatorLink::OnWelcome(const wire::Welcome& welcome) {
  id_ = welcome.worker;
  incarnation_ = welcome.coordinator;
  messenger_.DismissKey(std::exchange(peer_key_, {}));
  welcome.peer_key.copy(peer_key_.bytes.data(), LinkKey::kBytes);
  messenger_.AdmitKey(peer_key_);
  peers_.SetKey(peer_key_);
  state_ = State::kReady;
  for (Message& message : std::exchange(inventory_, {})) Send(std::move(message));
  Log(LogLevel::kInfo, "joined", {{"worker", id_}, {"coordinator", coordinator_name()}});
}

void CoordinatorLink::OnMessage(PeerId from, Message message) {
  if (state_ == State::kLost) return;
  if (from != coordinator_) return OnPartials(from, std::move(message));
  absl::StatusOr<wire::Body> body = wire::Decode(message);
  if (!body.ok()) return Lose(body.status());
  heard_ = clock_.Now();
  if (const auto* welcome = std::get_if<wire::Welcome>(&*body)) {
    if (state_ != State::kReady) OnWelcome(*welcome);
  } else if (std::holds_alternative<wire::Fenced>(*body)) {
    Lose(absl::AbortedError("it refuses this worker, which did what no worker does"));
  } else if (const auto* refused = std::get_if<wire::Refused>(&*body)) {
    Lose(absl::FailedPreconditionError(refused->why));
  } else if (const auto* cancel = std::get_if<wire::Cancel>(&*body)) {
    OnCancel(*cancel);
  } else if (auto* expect = std::get_if<wire::ExpectUpload>(&*body)) {
    if (options_.grants == nullptr) {
      return Lose(absl::InternalError("it expects an upload where there is no data port"));
    }
    options_.grants->Add(std::move(*expect));
  } else if (const auto* seen = std::get_if<wire::HeartbeatSeen>(&*body)) {
    if (!leaves_ || !seen->may_leave) return;
    state_ = State::kLeft;
    Disconnect();
    if (options_.grants != nullptr) options_.grants->RevokeAll();
    Log(LogLevel::kInfo, "left", {{"worker", id_}, {"coordinator", coordinator_name()}});
  } else {
    RevokeGrants(*body);
    OnTask(*std::move(body), std::move(message.payload));
  }
}

// An append that is taken back may still be on its way here from its client.
void CoordinatorLink::RevokeGrants(const wire::Body& body) {
  if (options_.grants == nullptr) return;
  if (const auto* trim = std::get_if<wire::TruncateLayer>(&body)) {
    options_.grants->Revoke(trim->storage_id, trim->layer);
  } else if (const auto* release = std::get_if<wire::Release>(&body)) {
    options_.grants->Revoke(release->storage_id, std::nullopt);
  }
}

void CoordinatorLink::OnCancel(const wire::Cancel& cancel) {
  const auto running = running_.find(cancel.request);
  if (running == running_.end()) return;
  if (cancel.items.empty()) running->second.cancel->store(true);
  const std::shared_ptr<MergePoint> merge_point = running->second.merge_point;
  if (merge_point != nullptr) Finish(merge_point->Drop(cancel.items));
}

// Other workers send nothing else, and give no orders.
void CoordinatorLink::OnPartials(PeerId from, Message message) {
  if (state_ != State::kReady) return;
  absl::StatusOr<wire::Body> body = wire::Decode(message);
  if (!body.ok() || !std::holds_alternative<wire::Partials>(*body)) {
    return messenger_.Disconnect(from);
  }
  PeerLinks::Early partials{std::get<wire::Partials>(*std::move(body)), std::move(message.payload),
                            clock_.Now()};
  const auto running = running_.find(partials.body.request);
  if (running != running_.end()) {
    if (running->second.merge_point == nullptr) return;
    return TakePartials(std::move(partials), running->second.merge_point);
  }
  if (!peers_.Keep(std::move(partials))) TellLinkLost();
}

void CoordinatorLink::TakePartials(PeerLinks::Early partials,
                                   const std::shared_ptr<MergePoint>& merge_point) {
  WorkerTask task;
  task.body = std::move(partials.body);
  task.payload = std::move(partials.payload);
  task.merge_point = merge_point;
  if (!options_.take(task, /*must=*/true)) TellLinkLost();
}

void CoordinatorLink::OnTask(wire::Body body, Buffer payload) {
  WorkerTask task;
  bool must = true;
  uint64_t request = 0;
  if (const auto* work = std::get_if<wire::Work>(&body)) {
    must = false;
    request = work->request;
    task.deadline = clock_.Now() + work->time_left;
    task.cancel = std::make_shared<std::atomic<bool>>(false);
    task.merge_point = MergePoint::Of(*work);
    running_[request] = {task.cancel, task.merge_point};
  } else if (std::holds_alternative<wire::Read>(body)) {
    must = false;
  } else if (!std::holds_alternative<wire::Open>(body) &&
             !std::holds_alternative<wire::TruncateLayer>(body) &&
             !std::holds_alternative<wire::Truncate>(body) &&
             !std::holds_alternative<wire::Fork>(body) &&
             !std::holds_alternative<wire::Resume>(body) &&
             !std::holds_alternative<wire::Release>(body)) {
    return Lose(absl::InternalError("it sent a message that only a worker sends"));
  }
  task.body = std::move(body);
  task.payload = std::move(payload);
  const std::shared_ptr<MergePoint> merge_point = task.merge_point;
  if (options_.take(task, must)) {
    if (merge_point == nullptr) return;
    for (PeerLinks::Early& early : peers_.TakeEarly(request)) {
      TakePartials(std::move(early), merge_point);
    }
    return;
  }
  if (must) return Lose(absl::ResourceExhaustedError("it sent more than the task queue holds"));
  running_.erase(request);
  Send(RefusalOf(task.body,
                 absl::ResourceExhaustedError("the worker's task queue is full; back off")));
}

void CoordinatorLink::Finish(TaskOutcome outcome) {
  if (outcome.request != 0) running_.erase(outcome.request);
  if (outcome.inventory) {
    inventory_ = std::move(outcome.messages);
    inventory_taken_ = true;
    return;
  }
  if (state_ != State::kReady) return;  // nobody waits for it any more
  for (PeerMessage& to : outcome.to_peers) {
    if (!peers_.Send(to.address, std::move(to.message))) TellLinkLost();
  }
  for (Message& message : outcome.messages) Send(std::move(message));
}

}  // namespace annulus
