// What a coordinator and its workers say to each other, as values, and their encoding in messages
// (fields.h). Decode trusts nothing: what it returns has enums in range and counts that make sense.
//
// Life of a link: the worker connects and says Hello until it gets Welcome; from then on it sends a
// Heartbeat every period and the coordinator answers each with HeartbeatSeen. A worker that had
// such a link before, to this coordinator or to another one, tells what it holds: an Inventory for
// each context, right after the Welcome; contexts whose ranks are all back go on with a Resume, and
// so do those that have lost a worker and have a copy of what it held. Tasks (Open, Work,
// ExpectUpload, TruncateLayer, Truncate, Fork, Release, Resume, Read) take effect in the order they
// were sent where they touch the same layer of the same context; those with a request number are
// answered by exactly one Done, a Work by one WorkDone. `epoch` is that of the shard map the task
// was made for and is echoed in its answer. `storage_id` is what workers know a context by: another
// id than `context`, that of its callers, once it has been moved.
//
// Workers speak to each other only to merge partials on their way to the coordinator (Partials),
// over links of their own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "annulus/buffer.h"
#include "annulus/key_list.h"
#include "annulus/types.h"
#include "attention/column_trip.h"
#include "attention/ranges.h"
#include "comm/messenger.h"
#include "runtime/context/layer_state.h"
#include "runtime/context/owner_bytes.h"
#include "sharding/plan.h"

namespace annulus::wire {

inline constexpr uint32_t kProtocol = 28;

// Worker → coordinator.
struct Hello {
  uint32_t protocol = kProtocol;
  std::string name;
  std::string backend;
  std::string address;  // of the worker's fabric, for exchanges
  int64_t kv_bytes_limit = 0;
  uint64_t coordinator = 0;       // the one it had before, by its incarnation; 0: none
  uint64_t contexts = 0;          // how many Inventories follow the Welcome
  std::string data_address = {};  // "host:port" where clients upload to it; empty: nowhere
};

// Coordinator → worker: taken in under this id.
struct Welcome {
  uint64_t worker = 0;
  uint64_t coordinator = 0;   // its incarnation
  std::string peer_key = {};  // the LinkKey that opens the doors of the other workers
};

// Coordinator → worker, instead of Welcome: that worker did before what no worker does.
struct Fenced {};

// Coordinator → worker, instead of Welcome: why this worker cannot be taken in as it is. It, Hello
// and the numbers of these two messages stay as they are in every version of the protocol.
struct Refused {
  std::string why;
};

// A worker beside those of Open::addresses, one for each rank: it holds the same as `rank` does,
// and answers no queries.
struct Copy {
  int rank = 0;
  std::string address;

  friend bool operator==(const Copy&, const Copy&) = default;
};

// Worker → coordinator: a context that it holds as `rank`.
struct Inventory {
  uint64_t epoch = 0;
  ContextId storage_id = 0;
  ContextSpec spec;
  int rank = 0;
  std::vector<std::string> addresses;  // as in Open
  std::vector<LayerState> layers;
  int64_t kv_bytes = 0;
  std::vector<Copy> copies = {};
  ContextId context = 0;       // as in Resume; 0: it is being filled
  bool activating = false;     // as in Resume
  int64_t owner_kv_bytes = 0;  // as in Done
};

// A context goes on at a new epoch, with its layers as they are here: cut to these tokens.
struct Resume {
  uint64_t epoch = 0;
  ContextId storage_id = 0;
  std::vector<std::string> addresses;
  std::vector<LayerState> layers;
  std::vector<Copy> copies = {};
  uint64_t request = 0;     // 0: not answered, what comes next finds it done
  ContextId context = 0;    // the context, as callers know it
  bool activating = false;  // those it moved from may still hold it
};

// Owners that one Heartbeat names at most.
inline constexpr size_t kOwnersMax = 1024;

struct Heartbeat {
  int64_t kv_bytes = 0;
  bool leaves = false;                  // the worker wants to go: what it holds is to be moved away
  std::vector<OwnerBytes> owners = {};  // whose contexts hold something else than they last did
};

struct HeartbeatSeen {
  bool may_leave = false;  // nothing needs a worker any more that wanted to go
};

// A context comes to be, with this worker as its `rank`, or as a copy of it. addresses: the fabrics
// of those that answer queries, by rank. A copy to which a context moves has `context` 0 until its
// first Resume: it answers nobody.
struct Open {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId storage_id = 0;
  ContextSpec spec;
  int rank = 0;
  std::vector<std::string> addresses;
  std::vector<Copy> copies = {};
  ContextId context = 0;
};

// Asks for what this rank holds of tokens [start, start + tokens) of a layer: the payload of its
// Done is what an append of them brought, with zeros for what was let go of.
struct Read {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId storage_id = 0;
  int layer = 0;
  int64_t start = 0;
  int64_t tokens = 0;
};

// What list(name) in an item's pattern stands for. One with a number, which no other list ever has
// of this coordinator, is kept by the worker until a Work says to forget it: it comes with its data
// until a Work that had it has been answered.
struct List {
  std::string name;
  std::optional<KeyListData> data = {};  // absent: kept
  uint64_t number = 0;                   // 0: of this item alone
};

// What one rank does for one layer of a context: tokens [start, start + k_tokens) are stored, what
// was there from `start` on is overwritten; then queries at [q_start, q_start + q_tokens) see the
// keys `keys` of the first kv_tokens. Where the ranks follow a plan, each builds it again from
// these values and the context's layout. Without a plan a rank attends all the queries of all its
// query heads over its own pages. Of the payload the item's tensors are what this rank stores
// (PackAppend, context/append_cut.h), then its queries (PackQueries, engine/engine.h).
struct WorkItem {
  uint64_t epoch = 0;
  ContextId storage_id = 0;
  int layer = 0;
  int64_t start = 0;
  int64_t k_tokens = 0;  // 0: nothing to append
  AppendMark mark = {};
  std::optional<int64_t> horizon = {};  // of the layer then; absent: that of `start`
  size_t append_bytes = 0;              // its tensors in the payload
  int64_t q_start = 0;
  int64_t q_tokens = 0;  // 0: no query, or none that sees a page of this rank
  int64_t kv_tokens = 0;
  TokenRange keys = {};
  float scale = 0;
  std::string pattern = {};  // empty: the context's for this layer
  size_t query_bytes = 0;
  std::optional<PlanKind> plan = {};
  int stages = 0;  // of the plan: the coordinator weighed them, workers do not
  // Of the exchange in which the plan's ranks wait for one another: a random number that only they
  // are told. 0: they do not. An item that has one has the message for itself.
  uint64_t channel = 0;
  // Without a plan: the rank that takes this one's partial and merges it into its own; absent: the
  // coordinator does. And how many ranks' partials this one merges into its own before.
  std::optional<int> merge_into = {};
  int merges = 0;
  std::vector<List> lists = {};  // of the pattern
  // Words of the pattern that choose keys by data. With any the queries are not attended: of each
  // word in turn the rank answers what it holds (Selection, engine/selection.h).
  std::vector<std::string> select = {};
  // Without a plan, of a context that this rank holds alone: it chooses for all other words of the
  // pattern that `lists` lack, and attends.
  bool chooses = false;
  bool counts = false;  // whether it tells how many pairs that was
  // Of a selection over a track: heads of its index queries. Their weights, if the words have any,
  // follow the queries: [q_tokens, index_heads] f32.
  int index_heads = 0;
  // A trip of a column pass (ColumnPass, engine/column_pass.h) instead: the queries, or the list of
  // the keys that are kept, are this rank's, and its answer is what the trip asks for.
  std::optional<ColumnTrip> column_trip = {};
};

// One rank's part of a call, or of many that came together. Items share nothing but the message,
// and each layer of a context is in one of them only.
struct Work {
  uint64_t request = 0;
  // Until the deadline, and not the deadline itself: clocks of machines differ.
  absl::Duration time_left = absl::InfiniteDuration();
  bool trace = false;
  std::string traceparent = {};  // of the call (base/trace_context.h); empty: it is in no trace
  std::vector<WorkItem> items;   // at most kStepsAtOnceMax; their tensors are the payload's bytes
  std::vector<uint64_t> forget_lists = {};  // which no Work names any more, this one neither
  uint64_t tenant = 0;  // a number of whoever calls, among whom the worker shares itself evenly
};

// A Work of one append whose tensors come from the client, at this worker's data port, from whoever
// names the request as its grant and knows the secret. Over when it has come, with the time, or
// with the next TruncateLayer or Release of the layer.
struct ExpectUpload {
  Work work;
  std::string secret;
  DType dtype = DType::kF32;
  std::string tenant = {};  // whose upload it is; empty: nobody's in particular
};

// Forgets a layer's tokens from `tokens` on: an append that some other worker refused.
struct TruncateLayer {
  ContextId storage_id = 0;
  int layer = 0;
  int64_t tokens = 0;
};

// Forgets all layers' tokens from `tokens` on.
struct Truncate {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId storage_id = 0;
  int64_t tokens = 0;
};

// A context comes to be that begins as `parent`, held by the same workers: its layers' first
// tokens.
struct Fork {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId storage_id = 0;
  ContextId parent = 0;
  std::vector<int64_t> tokens;  // by layer
};

// An item of a Work, where it is not told by its place there: each layer of a context is in one of
// them only.
struct ItemName {
  ContextId storage_id = 0;
  int layer = 0;

  friend bool operator==(const ItemName&, const ItemName&) = default;
};

// Nobody waits for the Work any more, or for these of its items: other ranks will send no partials
// of them. The Work is answered all the same.
struct Cancel {
  uint64_t request = 0;
  std::vector<ItemName> items = {};  // empty: all
};

// Worker → worker: partials of items of a Work, to be merged into the receiver's own. The payload
// has them one after the other, each as a WorkDone has it.
struct ItemPartial {
  ItemName item;
  size_t bytes = 0;  // 0: the item has failed
};
struct Partials {
  uint64_t request = 0;
  std::vector<ItemPartial> items;
};

// Worker → coordinator: a link of this worker to another one is down. Partials may be lost with it:
// calls in which this worker's partials are merged must not wait for them.
struct LinkLost {};

// Zeroes and frees a context's KV.
struct Release {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId storage_id = 0;
};

// The end of a task. Of a Read that went well the payload is what it asked for.
struct Done {
  uint64_t request = 0;
  uint64_t epoch = 0;
  absl::Status status;
  int64_t context_kv_bytes = 0;  // that the context holds on this worker now
  // That all contexts of its owner hold there; blocks that forks share count once. 0 of nobody's.
  int64_t owner_kv_bytes = 0;
};

// What became of each item of a Work, in its order. The payload's tensors are the partials of those
// with queries that went well, but for those that another rank merges: of a plan what its rank has
// for the caller (MergeAnswer), of a selection or a column pass its answers, else out [q_tokens,
// query heads of the rank, v_head_dim] f32, then lse.
struct WorkItemDone {
  uint64_t epoch = 0;
  absl::Status status;
  int64_t context_kv_bytes = 0;
  int64_t bytes_sent = 0;  // of a plan: payload, as RankResult
  int64_t bytes_received = 0;
  std::vector<TraceSpan> spans = {};  // of a trace; `process` is the receiver's to fill
  int64_t owner_kv_bytes = 0;         // as in Done
  bool counted = false;               // as it was asked: ProblemSize, of the keys that it chose
  int64_t visited_pairs = 0;
  int64_t work_pairs = 0;
};
struct WorkDone {
  uint64_t request = 0;
  std::vector<WorkItemDone> items;
};

using Body = std::variant<Hello, Refused, Welcome, Heartbeat, HeartbeatSeen, Open, Work, WorkDone,
                          TruncateLayer, Cancel, Release, Done, Truncate, Fork, Fenced, Inventory,
                          Resume, ExpectUpload, Read, Partials, LinkLost>;

// A payload of tensors goes only with Work, WorkDone, Partials and the Done of a Read.
inline constexpr size_t kSecretBytes = 16;
inline constexpr uint64_t kExpectBytesMax = uint64_t{1} << 40;
Message Encode(const Body& body, Buffer tensors = {});

// INVALID_ARGUMENT names the message and its field.
absl::StatusOr<Body> Decode(const Message& message);

}  // namespace annulus::wire
