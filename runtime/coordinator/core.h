// CoordinatorCore: everything a coordinator decides, as a state machine
//   (state, event) → (state, actions)
// without clock, transport, threads or tensors. Time comes with the event; tensors are moved, cut
// and merged by whoever carries the actions out. Membership, epochs, heartbeats, contexts, calls in
// flight, deadlines, cancel and loss live here, so that a simulation can drive a whole cluster.
//
// Failure model: a worker is lost when its link breaks or it was silent for heartbeat_timeout; it
// is cut off at once and for good (its messages are refused, its id is never used again). Contexts
// with KV there are lost, and calls on them in flight end with UNAVAILABLE. A call answers only
// when every rank of its plan has answered once, at the call's epoch.
// Thread-compatible.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/messenger.h"
#include "runtime/coordinator/limits.h"
#include "runtime/types.h"
#include "runtime/wire/wire.h"

namespace annulus {

using WorkerId = uint64_t;
// Also the request number on the wire and the channel of the call's exchange. Never used twice.
using CallId = uint64_t;

// Who holds a context: what a call plans with. rank → worker.
struct ShardMap {
  ContextId context = 0;
  uint64_t epoch = 0;
  ContextSpec spec;
  std::vector<WorkerId> workers;
};

// What may happen.
namespace event {

struct Heard {  // a message from a peer; its payload stays with the caller of Handle
  PeerId peer = 0;
  wire::Body body;
};
struct PeerDown {
  PeerId peer = 0;
  absl::Status why;
};
struct SendFailed {  // the transport took no message for this peer
  PeerId peer = 0;
  CallId call = 0;  // whose tensors it carried; 0: a message that must not be missed
  absl::Status why;
};
// A caller wants something. Only the fields of its kind are read.
struct Begin {
  enum class Kind { kCreate, kAppend, kAttend, kRelease };
  Kind kind = Kind::kCreate;
  CallId call = 0;
  absl::Time deadline = absl::InfiniteFuture();
  ContextSpec spec;  // kCreate, validated
  ContextId context = 0;
  int layer = 0;
  int64_t begin = 0;   // kAppend: start; kAttend: q_start
  int64_t tokens = 0;  // kAppend: of k; kAttend: of q
  int64_t kv_len = 0;  // kAttend
};
struct Prepared {  // the caller has planned and packed what these ranks get
  CallId call = 0;
  std::vector<int> ranks;
};
struct GiveUp {  // the caller cannot or will not go on
  CallId call = 0;
  absl::Status why;
};
struct Tick {};

}  // namespace event
using Event = std::variant<event::Heard, event::PeerDown, event::SendFailed, event::Begin,
                           event::Prepared, event::GiveUp, event::Tick>;

// What is to be done about it, in order.
namespace action {

struct Send {
  PeerId peer = 0;
  wire::Body body;
};
struct SendTask {  // what the caller prepared for this rank
  PeerId peer = 0;
  CallId call = 0;
  int rank = 0;
};
struct Drop {  // disconnect, for good
  PeerId peer = 0;
};
struct Admit {  // the caller may prepare
  CallId call = 0;
  ShardMap map;
};
struct Deliver {  // the message just heard is this rank's answer, good and the only one
  CallId call = 0;
  int rank = 0;
};
struct Finish {
  CallId call = 0;
  absl::Status status;
  uint64_t epoch = 0;
  ContextId context = 0;
  int64_t tokens = 0;  // kAppend: committed now
};
struct WorkerJoined {  // to be told to people
  std::string label;   // "worker 3 (name)"
  std::string backend;
};
struct WorkerLost {
  std::string label;
  absl::Status why;
};

}  // namespace action
using Action =
    std::variant<action::Send, action::SendTask, action::Drop, action::Admit, action::Deliver,
                 action::Finish, action::WorkerJoined, action::WorkerLost>;
using Actions = std::vector<Action>;

class CoordinatorCore {
 public:
  CoordinatorCore(const CoordinatorLimits& limits, absl::Duration heartbeat_timeout)
      : limits_(limits), heartbeat_timeout_(heartbeat_timeout) {}

  // A gap of more than half a heartbeat_timeout between two events counts as a stand-still of the
  // coordinator itself and starts every worker's patience anew.
  Actions Handle(absl::Time now, const Event& event);

  // When a Tick is due at the latest; infinite when nothing waits for one.
  absl::Time NextTimer() const;

  // NOT_FOUND for an unknown context.
  absl::StatusOr<ContextInfo> Describe(ContextId id) const;
  ClusterStatus Status() const;

 private:
  struct Member {
    PeerId peer = 0;
    WorkerStatus status;  // state "ready" or "lost"
    std::string label;    // as action::WorkerJoined
    absl::Time heard;     // the last sign of life
  };
  struct Context {
    ShardMap map;
    bool created = false;           // every rank has opened it
    std::vector<int64_t> tokens;    // committed, by layer
    std::vector<CallId> appending;  // the append in flight, by layer; 0: none
    std::vector<int64_t> kv_bytes;  // by rank
    std::string lost_to;            // the worker that took its KV along; empty: nothing is lost
  };
  struct Call {
    event::Begin begin;
    ContextId context = 0;
    uint64_t epoch = 0;
    int64_t bytes = 0;
    std::map<WorkerId, int> pending;  // rank by worker whose Done is awaited
    // An error that may be the echo of another rank's: the call waits a little for a better one.
    absl::Status failure;
    absl::Time failure_due = absl::InfiniteFuture();
  };
  using Calls = std::map<CallId, Call>;

  void On(const event::Heard& heard);
  void On(const event::PeerDown& down);
  void On(const event::SendFailed& failed);
  void On(const event::Begin& begin);
  void On(const event::Prepared& prepared);
  void On(const event::GiveUp& give_up);
  void On(const event::Tick&);

  void OnHello(PeerId peer, const wire::Hello& hello);
  void OnDone(WorkerId id, const wire::Done& done);
  void OnFailedRank(Calls::iterator call, WorkerId id, const absl::Status& status);

  absl::Status BeginCreate(Call& call);
  absl::Status BeginWork(Call& call);
  absl::Status BeginRelease(Call& call);
  absl::Status CheckAppend(const Context& context, const event::Begin& begin) const;
  absl::Status CheckAttend(const Context& context, const event::Begin& begin) const;
  absl::Status Reserve(const ContextSpec& spec, Call& call);

  void Succeed(Calls::iterator call);
  void Fail(Calls::iterator call, absl::Status why);
  void Undo(CallId id, const Call& call);
  void LoseWorker(WorkerId id, const absl::Status& why);
  void SendToRanks(const ShardMap& map, const wire::Body& body);

  static ContextInfo InfoOf(const Context& context);
  void ForgetOldLosses();

  template <typename T>
  void Emit(T action) {
    actions_.emplace_back(std::in_place_type<T>, std::move(action));
  }

  const CoordinatorLimits limits_;
  const absl::Duration heartbeat_timeout_;
  absl::Time now_ = absl::InfinitePast();  // of the event being handled
  Actions actions_;                        // of the event being handled
  uint64_t epoch_ = 0;
  WorkerId last_worker_ = 0;
  ContextId last_context_ = 0;
  int64_t in_flight_bytes_ = 0;
  std::map<WorkerId, Member> workers_;
  std::map<PeerId, WorkerId> peers_;  // of ready workers
  std::map<ContextId, Context> contexts_;
  Calls calls_;
};

}  // namespace annulus
