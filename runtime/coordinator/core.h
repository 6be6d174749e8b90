// CoordinatorCore: everything a coordinator decides, as a state machine
//   (state, event) → (state, actions)
// without clock, transport, threads or tensors. Time comes with the event; tensors are moved, cut
// and merged by whoever carries the actions out. Membership, epochs, heartbeats, contexts, calls in
// flight, deadlines, cancel and loss live here, so that a simulation can drive a whole cluster.
//
// Failure model: a worker is lost when its link breaks or it was silent for heartbeat_timeout; it
// is cut off at once (its messages are refused, its id is never used again). Calls in flight on
// contexts with KV there end with UNAVAILABLE. A context of which some rank has no holder left is
// lost; one with copies goes on with them at a new epoch, with the tokens that were committed. A
// worker that was cut off may join again under another id, and brings back the contexts that are
// lost without it (core_absent.cc). A call answers only when every rank of its plan has answered
// once, at the call's epoch. Contexts move away from workers that want to leave, to new copies for
// those that were lost, and to workers that have joined (core_moves.cc).
//
// Appends: a layer's tokens are committed when every holder has stored them, copies too; an append
// that fails on one is taken back on the others. One append at a time on a layer: another one,
// which may be a repetition of it, gets UNAVAILABLE. A repetition of the layer's last append (the
// same RequestKey) stores nothing and answers as the first did.
//
// A coordinator that follows one that was lost knows nothing at first; workers that join again tell
// what they hold (core_recovery.cc). A context whose holders are all back goes on at a new epoch
// with the tokens that all of them have alike: all that were acknowledged are among them. Until
// then calls on it get UNAVAILABLE, and DATA_LOSS if those that are not back in time are needed.
// Thread-compatible.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/coordinator/core_events.h"
#include "runtime/coordinator/limits.h"
#include "runtime/types.h"
#include "runtime/wire/wire.h"

namespace annulus {

// Which of several coordinators one after the other this is, and how long it waits for what workers
// of the one before it hold. Contexts' ids begin at `number`, so a later coordinator's must be
// larger than any id before it: the time at its start in µs is.
struct Incarnation {
  uint64_t number = 1;
  absl::Duration recovery_wait = absl::Seconds(10);
};

class CoordinatorCore {
 public:
  CoordinatorCore(const CoordinatorLimits& limits, absl::Duration heartbeat_timeout,
                  const Incarnation& incarnation = {})
      : limits_(limits),
        heartbeat_timeout_(heartbeat_timeout),
        incarnation_(incarnation),
        last_context_(incarnation.number - 1) {}

  // A gap of more than half a heartbeat_timeout between two events counts as a stand-still of the
  // coordinator itself: it starts every worker's patience anew, and contexts wait for workers that
  // have cut themselves off meanwhile.
  Actions Handle(absl::Time now, const Event& event);

  // When a Tick is due at the latest; infinite when nothing waits for one.
  absl::Time NextTimer() const;

  // NOT_FOUND for an unknown context, UNAVAILABLE while it is being recovered.
  absl::StatusOr<ContextInfo> Describe(ContextId id) const;
  // INVALID_ARGUMENT for a limit outside [1, kListMax], UNAVAILABLE while contexts are recovered.
  absl::StatusOr<std::vector<ContextInfo>> List(const ListRequest& request) const;
  ClusterStatus Status(absl::Time now) const;

 private:
  struct Member {
    PeerId peer = 0;
    WorkerStatus status;       // state "ready", "draining", "left" or "lost"
    bool had_another = false;  // link to a coordinator, before this one
    std::string label;         // as action::WorkerJoined
    absl::Time heard;          // the last sign of life
    uint64_t inventories_due = 0;
    int64_t kv_bytes_since = 0;  // stored since its last heartbeat, by appends
    bool may_leave = false;      // it was told so: nothing needs it
    bool banned = false;         // it did what no worker does: it may not join again
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
  // A holder that was cut off, with all that was committed then: nothing is, until it is back or
  // the context goes on without it.
  struct Absent {
    std::string address;
    std::string label;  // as Member's
    int rank = 0;
  };
  struct Context {
    ShardMapPtr map;
    bool created = false;  // every holder has opened it
    std::vector<Layer> layers;
    std::map<WorkerId, int64_t> kv_bytes;  // by holder
    std::string lost_to;         // the worker that took its KV along; empty: nothing is lost
    std::vector<Absent> absent;  // those that it waits for, or is lost without
    absl::Time absent_until = absl::InfinitePast();
  };
  // What is known of a context from before this coordinator.
  struct Recovering {
    std::map<WorkerId, wire::Inventory> inventories;  // of those that are back

    // The latest: who holds the context is what it says.
    const wire::Inventory& latest() const;
    // Whether it may have been moving here, and not have arrived.
    bool tentative() const;
    size_t holders() const { return latest().addresses.size() + latest().copies.size(); }
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
    size_t awaited = 0;  // holders whose answer is
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
    std::vector<WorkerId> workers;                 // its receivers, once admitted
    std::map<WorkerId, int> pending;               // the receivers whose Done is awaited
    std::vector<Item> items;                       // kStep
    std::map<WorkerId, std::vector<size_t>> sent;  // kStep: the items that each worker got
    // An error that may be the echo of another rank's: the call waits a little for a better one.
    absl::Status failure;
    absl::Time failure_due = absl::InfiniteFuture();
  };
  using Calls = std::map<CallId, Call>;
  // A context on its way to other workers (core_moves.cc).
  enum class Phase { kOpening, kReading, kFilling, kActivating, kRetiring };
  struct Move {
    ContextId context = 0;
    ShardMapPtr from;
    ShardMapPtr to;
    Phase phase = Phase::kOpening;
    uint64_t request = 0;         // whose Done is awaited
    std::set<WorkerId> pending;   // from these
    std::vector<int64_t> copied;  // tokens, by layer
    int layer = 0;                // of the chunk that is copied
    TokenRange chunk;
    uint64_t turn = 0;  // of the last append to the new holders
    int rounds = 0;     // over all layers
    bool last_round = false;
    std::map<WorkerId, int64_t> kv_bytes;  // of the new holders
    absl::Status failure;                  // it has been given up
  };

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
  absl::StatusOr<bool> CheckAppend(const ShardMap& map, const Layer& layer, TokenRange tokens,
                                   RequestKey key) const;
  static absl::Status CheckAttend(const Layer& layer, const event::Begin& begin);
  static absl::Status CheckCut(const Context& context, int64_t tokens);
  absl::Status CheckRoomForContext(int64_t layers) const;
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
  void EndStaleItems(Calls::iterator call, const absl::Status& why);

  // core_recovery.cc
  bool InRecovery() const { return now_ < recovery_until_; }
  absl::Status WhyUnknown(ContextId id) const;
  size_t KnownToBeMissing() const;
  bool IsBack(const std::string& address) const;
  void Tell(WorkerId id, const wire::Body& body);
  void ForgetHalfMade();
  std::vector<Holder> HoldersBack(const Recovering& recovering) const;
  void DropStale(ContextId id, Recovering& recovering);
  void ForgetOtherForms(ContextId id);
  void Rebuild(ContextId id, const Recovering& recovering);
  static bool IsSafe(const Recovering& recovering);
  static Layer Reconcile(const std::vector<const LayerState*>& holders);
  void EndRecovery();

  void Succeed(Calls::iterator call);
  void Fail(Calls::iterator call, absl::Status why);
  void Undo(CallId id, const Call& call);
  void CancelPending(CallId id, const Call& call);
  void LoseWorker(WorkerId id, const absl::Status& why);
  void Ban(WorkerId id, const absl::Status& why);
  void EndStaleCalls(const absl::Status& why);
  void SendToHolders(const ShardMap& map, const wire::Body& body);

  // core_moves.cc
  static bool IsMoveRequest(uint64_t request);
  bool IsSwitching(ContextId id) const;
  absl::Status CheckNotSwitching(ContextId id) const;
  bool MoveHoldsOff(ContextId id) const;
  bool MustMove(const Context& context) const;
  bool IsWorthwhile(const Context& context, const ShardMap& to) const;
  void LookForMove();
  uint64_t AwaitMovers(absl::Span<const Holder> holders);
  void OnMoveDone(WorkerId id, const wire::Done& done);
  void StepMove();
  void ReadChunk();
  void FillChunk();
  void ActivateMove();
  void SwitchMove();
  void Retire(const ShardMap& map);
  void EndMove();
  void GiveUpMove(const absl::Status& why);
  void LoseMover(WorkerId id);
  bool MayLeave(WorkerId id) const;

  // core_copies.cc
  // KV of each worker that is there, by its limit: what it holds, and soon will.
  using Loads = std::map<WorkerId, double>;
  Loads LoadsNow() const;
  void AddExpected(const Context& context, double times, Loads& loads) const;
  Loads WithoutIt(const Context& context, Loads loads) const;
  double ShareOf(WorkerId id, double bytes) const;
  void NoteBytes(Context& context, WorkerId id, int64_t bytes);
  absl::Status Place(ShardMap& map, const Loads& loads) const;
  static bool Arrange(ShardMap& map);
  std::pair<std::vector<std::string>, std::vector<wire::Copy>> AddressesOf(
      const ShardMap& map) const;
  wire::Resume ResumeOf(const ShardMap& map, const std::vector<Layer>& layers) const;

  // core_absent.cc
  void LoseHolder(Context& context, WorkerId id);
  bool TakeUp(WorkerId id, const wire::Inventory& inventory);
  void GoOn(Context& context);
  void EndAbsence(Context& context);
  void EndAbsences();
  absl::Status CheckAllThere(const Context& context) const;
  bool MakeWayFor(const wire::Hello& hello);

  static bool IsUp(const Member& member) {
    return member.status.state == "ready" || member.status.state == "draining";
  }
  std::string StateOf(const Context& context) const;
  ContextInfo InfoOf(const Context& context) const;
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
  absl::Time doubt_until_ = absl::InfinitePast();       // losses may be due to a stand-still here
  absl::Time absent_due_ = absl::InfiniteFuture();      // no context waits for less long
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
  std::optional<Move> move_;
  absl::Time next_move_ = absl::InfinitePast();  // not before
  uint64_t last_move_request_ = 0;
};

}  // namespace annulus
