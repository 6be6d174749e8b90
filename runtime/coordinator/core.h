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
//
// Appends: a layer's tokens are committed when every rank has stored them; an append that fails on
// one is taken back on the others. One append at a time on a layer: another one, which may be a
// repetition of it, gets UNAVAILABLE. A repetition of the layer's last append (the same RequestKey)
// stores nothing and answers as the first did.
//
// A coordinator that follows one that was lost knows nothing at first; workers that join again tell
// what they hold (core_recovery.cc). A context whose ranks are all back goes on at a new epoch with
// the tokens that all of them have alike: all that were acknowledged are among them. Until then
// calls on it get UNAVAILABLE, and DATA_LOSS if some rank is not back in time.
// Thread-compatible.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/messenger.h"
#include "runtime/coordinator/limits.h"
#include "runtime/store/retention.h"
#include "runtime/types.h"
#include "runtime/wire/wire.h"

namespace annulus {

using WorkerId = uint64_t;
// Also the request number on the wire and the channel of the call's exchange. Never used twice.
using CallId = uint64_t;

// Which of several coordinators one after the other this is, and how long it waits for what workers
// of the one before it hold. Contexts' ids begin at `number`, so a later coordinator's must be
// larger than any id before it: the time at its start in µs is.
struct Incarnation {
  uint64_t number = 1;
  absl::Duration recovery_wait = absl::Seconds(10);
};

// Who holds a context: what a call plans with. rank → worker. Immutable once shared.
struct ShardMap {
  ContextId context = 0;
  uint64_t epoch = 0;
  ContextSpec spec;
  std::vector<WorkerId> workers;
  std::shared_ptr<const Retention> retention;
};
using ShardMapPtr = std::shared_ptr<const ShardMap>;

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
struct StepItem {  // as StepRequest
  ContextId context = 0;
  int layer = 0;
  int64_t start = 0;
  int64_t k_tokens = 0;
  int64_t q_tokens = 0;
  RequestKey key;
};
// A caller wants something. Only the fields of its kind are read.
struct Begin {
  enum class Kind { kCreate, kAppend, kAttend, kStep, kFork, kTruncate, kRelease };
  Kind kind = Kind::kCreate;
  CallId call = 0;
  absl::Time deadline = absl::InfiniteFuture();
  ContextSpec spec;  // kCreate, validated
  ContextId context = 0;
  int layer = 0;
  int64_t begin = 0;    // kAppend: start; kAttend: q_start
  int64_t tokens = 0;   // kAppend: of k; kAttend: of q; kTruncate: that stay
  int64_t kv_len = 0;   // kAttend
  RequestKey key;       // kAppend
  bool direct = false;  // kAppend: its tensors do not pass here
  std::optional<int64_t> fork_tokens;
  std::vector<StepItem> items = {};  // kStep
};
// The caller has planned and packed what these ranks get. Of a Step, the ranks are those of
// AdmitStep::workers, and each gets the live items (AdmittedItem) that are not refused here and
// whose context it holds, in order.
struct Prepared {
  CallId call = 0;
  std::vector<int> ranks;
  std::vector<std::pair<size_t, absl::Status>> refused = {};  // items of a Step, ascending
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
  ShardMapPtr map;
  int64_t horizon = 0;                           // of the layer: see Retention
  AppendMark mark = {};                          // of an append
  std::vector<std::string> data_addresses = {};  // of a direct append, by rank
};
struct AdmittedItem {
  absl::Status status;  // an error: the item has ended
  ShardMapPtr map;
  bool appends = false;
  bool attends = false;
  int64_t horizon = 0;   // of the layer, after the append
  AppendMark mark = {};  // of the append

  bool live() const { return status.ok() && (appends || attends); }
};
struct AdmitStep {  // the caller may prepare the live items
  CallId call = 0;
  std::vector<WorkerId> workers;  // that hold a context of a live item
  std::vector<AdmittedItem> items;
};
struct Deliver {  // the message just heard is this rank's answer, good and the only one
  CallId call = 0;
  int rank = 0;
};
struct ItemEnd {  // of a Step
  absl::Status status;
  uint64_t epoch = 0;
  int64_t tokens = 0;  // committed now
};
struct Finish {
  CallId call = 0;
  absl::Status status;
  uint64_t epoch = 0;
  ContextId context = 0;       // kCreate, kFork: the new one
  int64_t tokens = 0;          // kAppend: committed now
  std::vector<ItemEnd> items;  // kStep that began: how each of them ended
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
    std::variant<action::Send, action::SendTask, action::Drop, action::Admit, action::AdmitStep,
                 action::Deliver, action::Finish, action::WorkerJoined, action::WorkerLost>;
using Actions = std::vector<Action>;

class CoordinatorCore {
 public:
  CoordinatorCore(const CoordinatorLimits& limits, absl::Duration heartbeat_timeout,
                  const Incarnation& incarnation = {})
      : limits_(limits),
        heartbeat_timeout_(heartbeat_timeout),
        incarnation_(incarnation),
        last_context_(incarnation.number - 1) {}

  // A gap of more than half a heartbeat_timeout between two events counts as a stand-still of the
  // coordinator itself and starts every worker's patience anew.
  Actions Handle(absl::Time now, const Event& event);

  // When a Tick is due at the latest; infinite when nothing waits for one.
  absl::Time NextTimer() const;

  // NOT_FOUND for an unknown context, UNAVAILABLE while it is being recovered.
  absl::StatusOr<ContextInfo> Describe(ContextId id) const;
  // INVALID_ARGUMENT for a limit outside [1, kListMax], UNAVAILABLE while contexts are recovered.
  absl::StatusOr<std::vector<ContextInfo>> List(const ListRequest& request) const;
  ClusterStatus Status() const;

 private:
  struct Member {
    PeerId peer = 0;
    WorkerStatus status;  // state "ready" or "lost"
    std::string label;    // as action::WorkerJoined
    absl::Time heard;     // the last sign of life
    uint64_t inventories_due = 0;
  };
  struct Layer {
    int64_t tokens = 0;    // committed
    CallId appending = 0;  // the append in flight; 0: none
    int64_t horizon = 0;   // that the ranks have been sent
    uint64_t turn = 0;     // of the last append that began
    // The last append that went well.
    RequestKey last_key;
    TokenRange last_tokens;

    // An append from `start` on is on its way to the ranks.
    void Advance(int64_t start) { horizon = std::max(horizon, HorizonOf(start)); }
    void Commit(TokenRange range, RequestKey key);
    // The tokens from `cut` on are forgotten.
    void Cut(int64_t cut) {
      if (cut >= tokens) return;
      tokens = cut;
      horizon = std::min(horizon, HorizonOf(cut));
    }
  };
  struct Context {
    ShardMapPtr map;
    bool created = false;  // every rank has opened it
    std::vector<Layer> layers;
    std::vector<int64_t> kv_bytes;  // by rank
    std::string lost_to;            // the worker that took its KV along; empty: nothing is lost
  };
  // What is known of a context from before this coordinator.
  struct Recovering {
    std::map<int, WorkerId> holders;  // by rank
    std::map<int, wire::Inventory> inventories;

    size_t world() const { return inventories.begin()->second.addresses.size(); }
  };
  struct Item {  // of a Step
    event::StepItem ask;
    ShardMapPtr map;  // null: it was not admitted
    bool appends = false;
    bool attends = false;
    bool sent = false;
    bool ended = false;
    int64_t horizon = 0;
    uint64_t turn = 0;
    int awaited = 0;  // ranks whose answer is
    absl::Status status;
    int64_t tokens = 0;  // committed at its end

    int64_t kv_len() const { return ask.start + ask.k_tokens; }
  };
  struct Call {
    event::Begin begin;
    ContextId context = 0;
    uint64_t epoch = 0;
    int64_t bytes = 0;
    int64_t horizon = 0;                           // kAttend: of the layer at its admission
    std::vector<WorkerId> workers;                 // rank → worker, once admitted
    std::map<WorkerId, int> pending;               // rank by worker whose Done is awaited
    std::vector<Item> items;                       // kStep
    std::map<WorkerId, std::vector<size_t>> sent;  // kStep: the items that each worker got
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
  void OnInventory(WorkerId id, const wire::Inventory& inventory);
  void OnDone(WorkerId id, const wire::Done& done);
  void OnFailedRank(Calls::iterator call, WorkerId id, const absl::Status& status);

  absl::Status BeginCreate(Call& call);
  absl::Status BeginFork(Call& call);
  absl::Status BeginTruncate(Call& call);
  absl::Status BeginWork(Call& call);
  absl::Status AdmitAppend(Call& call, const ShardMap& map,
                           std::vector<std::string>* data_addresses);
  absl::Status BeginRelease(Call& call);
  absl::StatusOr<Context*> FindWhole(ContextId id);
  static absl::StatusOr<Layer*> FindLayer(Context& context, int layer);
  // Whether there is something to append: not if it is a repetition of the layer's last append.
  static absl::StatusOr<bool> CheckAppend(const ContextSpec& spec, const Layer& layer,
                                          TokenRange tokens, RequestKey key);
  static absl::Status CheckAttend(const Layer& layer, const event::Begin& begin);
  static absl::Status CheckCut(const Context& context, int64_t tokens);
  absl::Status CheckRoomForContext() const;
  absl::Status CheckRoomForCall() const;
  static absl::Status CheckOvertaken(const ShardMap& map, const Layer& layer, int64_t kv_len,
                                     int64_t horizon);
  absl::Status Reserve(int64_t bytes, Call& call);
  void AddContext(Context context, Call& call);
  absl::Status StillThere(const Call& call) const;

  // core_step.cc
  absl::Status BeginStep(Call& call);
  absl::Status AdmitItem(Item& item, CallId call);
  absl::Status StillThere(const Item& item) const;
  void StepPrepared(Calls::iterator call, const event::Prepared& prepared);
  void OnStepDone(WorkerId id, const wire::StepDone& done);
  void EndItem(CallId call, Item& item, absl::Status status);
  void EndStep(Calls::iterator call, const absl::Status& why);
  void EndStepIfDone(Calls::iterator call);
  void LoseItems(Calls::iterator call, WorkerId id, const absl::Status& why);

  // core_recovery.cc
  bool InRecovery() const { return now_ < recovery_until_; }
  absl::Status WhyUnknown(ContextId id) const;
  bool IsBack(const std::string& address) const;
  void Tell(WorkerId id, const wire::Body& body);
  void ForgetHalfMade();
  void Rebuild(ContextId id, Recovering& recovering);
  static Layer Reconcile(const std::vector<const LayerState*>& ranks);
  void EndRecovery();

  void Succeed(Calls::iterator call);
  void Fail(Calls::iterator call, absl::Status why);
  void Undo(CallId id, const Call& call);
  void CancelPending(CallId id, const Call& call);
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
  const Incarnation incarnation_;
  absl::Time recovery_until_ = absl::InfiniteFuture();  // from the first event on
  absl::Time now_ = absl::InfinitePast();               // of the event being handled
  Actions actions_;                                     // of the event being handled
  uint64_t epoch_ = 0;
  WorkerId last_worker_ = 0;
  ContextId last_context_;
  int64_t in_flight_bytes_ = 0;
  std::map<WorkerId, Member> workers_;
  std::map<PeerId, WorkerId> peers_;  // of ready workers
  std::map<ContextId, Context> contexts_;
  std::map<ContextId, Recovering> recovering_;
  Calls calls_;
};

}  // namespace annulus
