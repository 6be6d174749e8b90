// What a CoordinatorCore is told and what it orders: values, without transport or tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "comm/messenger.h"
#include "runtime/context/layout.h"
#include "runtime/context/retention.h"
#include "runtime/identity/caller.h"
#include "runtime/protocol/cluster/wire.h"
#include "runtime/service/calls.h"

namespace annulus {

using WorkerId = uint64_t;
// Also the request number on the wire. Never used twice.
using CallId = uint64_t;

// Which of several coordinators one after the other this is, and how long it waits for what workers
// of the one before it hold. Contexts' ids begin at `number`, so a later coordinator's must be
// larger than any id before it: the time at its start in µs is.
struct Incarnation {
  uint64_t number = 1;
  absl::Duration recovery_wait = absl::Seconds(10);
  // With which its workers connect to one another: a random one, but for tests.
  LinkKey peer_key = {};
};

struct Holder {
  WorkerId worker = 0;
  int rank = 0;
};

// Who holds a context: what a call plans with. Immutable once shared.
struct ShardMap {
  ContextId context = 0;
  ContextId storage_id = 0;  // its id at the workers: another one once it has been moved
  uint64_t epoch = 0;
  ContextSpec spec;
  int world = 0;  // ranks
  // Rank r is held by holders[r], which answers queries; those from `world` on are copies. No
  // worker holds two ranks.
  std::vector<Holder> holders;
  std::shared_ptr<const Retention> retention;
  HeadMap heads;                    // HeadMapOf
  std::vector<ContextSpec> tracks;  // TrackSpecs

  // What a stored layer's rows are, and where the first `tokens` lie.
  const ContextSpec& SpecOf(int layer) const { return SpecOfLayer(spec, tracks, layer); }
  Layout layout(int layer, int64_t tokens) const {
    return LayoutOfLayer(spec, tracks, layer, world, heads, tokens);
  }
  int64_t RatioOf(int layer) const { return annulus::RatioOf(spec, layer); }
  int64_t RowsOf(int layer, int64_t tokens) const { return annulus::RowsOf(spec, layer, tokens); }

  // Whom a call goes to: appends to all, queries to those that answer.
  absl::Span<const Holder> Receivers(bool appends) const {
    return {holders.data(), appends ? holders.size() : static_cast<size_t>(world)};
  }
};
using ShardMapPtr = std::shared_ptr<const ShardMap>;

// What a caller may want.
namespace request {

struct Create {
  ContextSpec spec;  // validated
};
// What a call wants of one layer of a context: tokens [start, start + k_tokens) are appended, then
// q_tokens queries attended.
struct WorkItem {
  // Of a step the queries are the last tokens that the layer then has; an attend says where they
  // are and what they see, and its `start` is kv_len.
  enum class Kind { kStep, kAppend, kAttend };

  ContextId context = 0;
  int layer = 0;
  int64_t start = 0;
  int64_t k_tokens = 0;
  int64_t q_tokens = 0;
  RequestKey key = {};
  Kind kind = Kind::kStep;
  int64_t q_start = 0;
  TokenRange keys = {};          // that are seen, of the first kv_len
  bool appended_before = false;  // a step's queries, whose tokens an earlier call appended
  // A later trip of a call reads what the first one read: ItemEnd::truncations of that.
  std::optional<int64_t> truncations = {};

  int64_t kv_len() const { return start + k_tokens; }
  TokenRange queries() const {
    const int64_t begin = kind == Kind::kAttend ? q_start : kv_len() - q_tokens;
    return {begin, begin + q_tokens};
  }
  TokenRange seen() const { return kind == Kind::kAttend ? keys : TokenRange{0, kv_len()}; }
};
struct Work {
  std::vector<WorkItem> items;
  bool direct = false;  // the tensors of its append do not pass here
};
using Fork = ForkRequest;
using Truncate = TruncateRequest;
using Release = ReleaseRequest;
using KeepAlive = KeepAliveRequest;

}  // namespace request
using Request = std::variant<request::Create, request::Work, request::Fork, request::Truncate,
                             request::Release, request::KeepAlive>;

// What may happen.
namespace event {

struct Heard {  // a message from a peer; its payload stays with the caller of Handle
  PeerId peer = 0;
  wire::Body body;
};
struct PartHeard {  // of a message from a peer, which is under way
  PeerId peer = 0;
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
struct Begin {  // a caller wants something
  CallId call = 0;
  Request request;
  absl::Time deadline = absl::InfiniteFuture();
  Caller caller = {};
};
// What one worker gets: Admit::workers by its index, and the live items (AdmittedItem) that are in
// its message, in their order there.
struct Share {
  Share(int rank, std::vector<size_t> items = {0}) : rank(rank), items(std::move(items)) {}

  int rank = 0;
  std::vector<size_t> items;
};
// The caller has planned and packed what these get. An item that is in no message sees nothing.
struct Prepared {
  CallId call = 0;
  std::vector<Share> shares;
  std::vector<std::pair<size_t, absl::Status>> refused = {};  // items, ascending
  std::vector<size_t> merging = {};  // items whose partials are merged among the workers
  int64_t bytes = 0;  // that the call takes beside its tensors: candidates, lists as they are sent
};
struct GiveUp {  // the caller cannot or will not go on
  CallId call = 0;
  absl::Status why;
};
// A call's tensors are about to come (calls 1), and then have come or will not (−1): the call uses
// its context meanwhile.
struct Use {
  ContextId context = 0;
  int calls = 0;
};
struct Tick {};

}  // namespace event
using Event = std::variant<event::Heard, event::PartHeard, event::PeerDown, event::SendFailed,
                           event::Begin, event::Prepared, event::GiveUp, event::Use, event::Tick>;

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
struct AdmittedItem {
  absl::Status status;  // an error: the item has ended
  ShardMapPtr map;
  bool appends = false;
  bool attends = false;
  int64_t horizon = 0;   // of the layer, after the append (see Retention)
  AppendMark mark = {};  // of the append

  bool live() const { return status.ok() && (appends || attends); }
};
struct Admit {  // the caller may prepare the live items
  CallId call = 0;
  std::vector<WorkerId> workers;  // the receivers of live items; of one item, in its map's order
  std::vector<AdmittedItem> items;
  std::vector<std::string> data_addresses = {};  // of a direct append, by holder
};
struct Deliver {  // the message just heard is this rank's answer, good and the only one
  CallId call = 0;
  int rank = 0;
};
struct ItemEnd {
  absl::Status status;
  uint64_t epoch = 0;
  int64_t tokens = 0;       // committed now
  int64_t truncations = 0;  // of the layer, when the item was admitted
};
struct Finish {
  CallId call = 0;
  absl::Status status;         // of a call that was admitted, OK: its items have their own
  ContextId context = 0;       // Create, Fork: the new one
  std::vector<ItemEnd> items;  // how each item of a call that was admitted, or context, ended
};
struct WorkerJoined {  // its link is trusted from now on; to be told to people
  PeerId peer = 0;
  std::string label;  // "worker 3 (name)"
  std::string backend;
};
struct WorkerLeft {  // in good order: nothing was lost with it
  std::string label;
};
struct WorkerLost {
  std::string label;
  absl::Status why;
};
struct ContextEnded {  // to be told to people: released, and not by a caller
  ContextId context = 0;
  std::string why;
  int64_t kv_bytes = 0;
  absl::Duration idle;
};
struct ContextLost {  // likewise: some of its KV is on no worker that is there
  ContextId context = 0;
  std::string with;  // the worker, or how many, that took it along
};
// A context moves: a chunk of its tokens is about to be read. Until the next MoveRead, MoveRows and
// MoveFill are about this one.
struct MoveRead {
  ShardMapPtr from;
  ShardMapPtr to;
  int layer = 0;
  TokenRange chunk;
};
struct MoveRows {  // the message just heard has what this rank holds of it
  int rank = 0;
};
struct MoveFill {  // what this rank stores of it goes there
  PeerId peer = 0;
  int rank = 0;
  wire::Work work;  // but for the size of its tensors
};
struct MoveEnded {  // to be told to people
  ContextId context = 0;
  absl::Status status;
};

}  // namespace action
using Action =
    std::variant<action::Send, action::SendTask, action::Drop, action::Admit, action::Deliver,
                 action::Finish, action::WorkerJoined, action::WorkerLeft, action::WorkerLost,
                 action::ContextEnded, action::ContextLost, action::MoveRead, action::MoveRows,
                 action::MoveFill, action::MoveEnded>;
using Actions = std::vector<Action>;

// What the parts of a core share while an event is handled: its time, and the actions it leads to.
class Outbox {
 public:
  // A time before that of the last event counts as that.
  void Begin(absl::Time now) {
    now_ = std::max(now_, now);
    actions_.clear();
  }
  Actions Take() { return std::move(actions_); }

  absl::Time now() const { return now_; }

  template <typename T>
  void Emit(T action) {
    actions_.emplace_back(std::in_place_type<T>, std::move(action));
  }

 private:
  absl::Time now_ = absl::InfinitePast();
  Actions actions_;
};

}  // namespace annulus
