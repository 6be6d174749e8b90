// CoordinatorLoop: the core with its transport. It feeds messages, calls and time to the core and
// carries the actions out. It has no thread of its own and never waits: whoever owns it has it
// handle what there is, a coordinator's threads in turn or a simulation. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "comm/messenger.h"
#include "runtime/coordinator/admitted_workers.h"
#include "runtime/coordinator/calls/context_copy.h"
#include "runtime/coordinator/calls/tensor_call.h"
#include "runtime/coordinator/cluster_view.h"
#include "runtime/coordinator/core/core.h"

namespace annulus {

// What a caller hears of its call: at most one Admit, then answers, then exactly one Finish.
using CallNews = std::variant<action::Admit, ShareAnswer, action::Finish>;
using CallListener = std::function<void(CallNews)>;

class CoordinatorLoop {
 public:
  // What is pointed or referred to must outlive this. Sets the messenger's handlers. With
  // `admitted` only those workers may join, else whoever says Hello.
  CoordinatorLoop(Messenger& messenger, const CoordinatorLimits& limits,
                  absl::Duration heartbeat_timeout, const Clock& clock,
                  const Incarnation& incarnation = {}, AdmittedWorkers* admitted = nullptr);

  // These take effect with the next Handle. The listener is called from there, and may call them.
  void Begin(event::Begin begin, CallListener listener);
  void Prepared(CallId call, PreparedCall prepared);
  void GiveUp(CallId call, absl::Status why);
  // Ends all calls.
  void GiveUpAll(const absl::Status& why);

  // As core().Look. A call that is about to come uses what is found, until StopUsing.
  absl::StatusOr<ShardMapPtr> LookToUse(ContextId id, int layer, const Caller& caller);
  void StopUsing(ContextId id) { incoming_.push_back({event::Use{id, -1}, {}}); }

  // Handles what has been asked for, what has come, and what is due.
  void Handle();
  // When there is something to handle at the latest, even if nothing comes.
  absl::Time NextDue() const { return core_.NextTimer(); }

  const CoordinatorCore& core() const { return core_; }
  ClusterView View(size_t places_max) const;

 private:
  struct InFlight {
    CallListener listener;
    std::vector<ShareMessage> messages;  // prepared, not sent
  };
  // An event, and what came with it that the core does not see.
  struct Incoming {
    Event event;
    Buffer payload;
  };

  void OnMessage(PeerId from, Message message);
  absl::Status CheckAdmitted(PeerId from, const wire::Hello& hello) const;
  void Distrust(PeerId peer, absl::Status why);
  void HandleAll();

  void Do(action::Send& send, Incoming& cause);
  void Do(action::SendTask& send, Incoming& cause);
  void Do(action::Drop& drop, Incoming& cause);
  void Do(action::Admit& admit, Incoming& cause);
  void Do(action::Deliver& deliver, Incoming& cause);
  void Do(action::Finish& finish, Incoming& cause);
  void Do(action::WorkerJoined& joined, Incoming& cause);
  void Do(action::WorkerLeft& left, Incoming& cause);
  void Do(action::WorkerLost& lost, Incoming& cause);
  void Do(action::ContextEnded& ended, Incoming& cause);
  void Do(action::ContextLost& lost, Incoming& cause);
  void Do(action::MoveRead& read, Incoming& cause);
  void Do(action::MoveRows& rows, Incoming& cause);
  void Do(action::MoveFill& fill, Incoming& cause);
  void Do(action::MoveEnded& ended, Incoming& cause);
  void SendOrReport(PeerId peer, CallId call, Message message);
  void Tell(CallId call, CallNews news);

  Messenger& messenger_;
  const Clock& clock_;
  AdmittedWorkers* const admitted_;
  CoordinatorCore core_;
  std::deque<Incoming> incoming_;
  std::map<CallId, InFlight> calls_;
  std::optional<ContextCopy> copy_;  // of the context that moves
  ClusterView view_;                 // but for what goes on
};

}  // namespace annulus
