// What a coordinator and its workers say to each other, as values, and their encoding in messages
// (fields.h). Decode trusts nothing: what it returns has enums in range and counts that make sense.
//
// Life of a link: the worker connects and says Hello until it gets Welcome; from then on it sends a
// Heartbeat every period and the coordinator answers each with HeartbeatSeen. A worker that had
// such a link before, to this coordinator or to another one, tells what it holds: an Inventory for
// each context, right after the Welcome; contexts whose ranks are all back go on with a Resume, and
// so do those that have lost a worker and have a copy of what it held. Tasks (Open, Append,
// Expect, Trim, Truncate, Attend, Step, Fork, Release, Resume, Read) take effect in the order they
// were sent where they touch the same layer of the same context; those with a request number are
// answered by exactly one Done, a Step by one StepDone. `epoch` is that of the shard map the task
// was made for and is echoed in its Done.
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
#include "annulus/types.h"
#include "attention/ranges.h"
#include "comm/messenger.h"
#include "runtime/store/layer_state.h"
#include "sharding/plan.h"

namespace annulus::wire {

inline constexpr uint32_t kProtocol = 11;

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
  uint64_t coordinator = 0;  // its incarnation
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
  ContextId context = 0;
  ContextSpec spec;
  int rank = 0;
  std::vector<std::string> addresses;  // as in Open
  std::vector<LayerState> layers;
  int64_t kv_bytes = 0;
  std::vector<Copy> copies = {};
  ContextId serves = 0;    // as in Resume; 0: it is being filled
  bool tentative = false;  // as in Resume
};

// A context goes on at a new epoch, with its layers as they are here: cut to these tokens.
struct Resume {
  uint64_t epoch = 0;
  ContextId context = 0;
  std::vector<std::string> addresses;
  std::vector<LayerState> layers;
  std::vector<Copy> copies = {};
  uint64_t request = 0;    // 0: not answered, what comes next finds it done
  ContextId serves = 0;    // the context, as callers know it
  bool tentative = false;  // those it moved from may still hold it
};

struct Heartbeat {
  int64_t kv_bytes = 0;
  bool leaves = false;  // the worker wants to go: what it holds is to be moved away
};

struct HeartbeatSeen {
  bool may_leave = false;  // nothing needs a worker any more that wanted to go
};

// A context comes to be, with this worker as its `rank`, or as a copy of it. addresses: the fabrics
// of those that answer queries, by rank. One that another context moves to `serves` nothing before
// its first Resume.
struct Open {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId context = 0;
  ContextSpec spec;
  int rank = 0;
  std::vector<std::string> addresses;
  std::vector<Copy> copies = {};
  ContextId serves = 0;
};

// Tokens [start, start + tokens) of a layer; the payload holds what this rank stores of them
// (PackAppend, store/append_cut.h). What was there from `start` on is overwritten.
struct Append {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId context = 0;
  int layer = 0;
  int64_t start = 0;
  int64_t tokens = 0;
  AppendMark mark = {};
  std::optional<int64_t> horizon = {};  // of the layer then; absent: that of `start`
};

// Asks for what this rank holds of tokens [start, start + tokens) of a layer: the payload of its
// Done is what an Append of them brought, with zeros for what was let go of.
struct Read {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId context = 0;
  int layer = 0;
  int64_t start = 0;
  int64_t tokens = 0;
};

// An Append whose payload comes from the client, at this worker's data port, from whoever names the
// request as its grant and knows the secret. Over when it has come, with the time, or with the next
// Trim or Release of the layer.
struct Expect {
  Append append;
  std::string secret;
  uint64_t bytes = 0;  // of the payload
  DType dtype = DType::kF32;
  absl::Duration time_left = absl::InfiniteDuration();
};

// Forgets a layer's tokens from `tokens` on: an append that some other worker refused.
struct Trim {
  ContextId context = 0;
  int layer = 0;
  int64_t tokens = 0;
};

// Forgets all layers' tokens from `tokens` on.
struct Truncate {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId context = 0;
  int64_t tokens = 0;
};

// A context comes to be that begins as `parent`, held by the same workers: its layers' first
// tokens.
struct Fork {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId context = 0;
  ContextId parent = 0;
  std::vector<int64_t> tokens;  // by layer
};

// One rank's part of a plan, which the worker builds again from these values and the context's
// layout. The payload is PackQueries of the rank. The exchange's channel is `request`.
struct Attend {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId context = 0;
  int layer = 0;
  PlanKind plan = PlanKind::kPassQ;
  int64_t q_tokens = 0;
  int64_t kv_tokens = 0;
  std::string pattern;
  float scale = 0;
  // Until the deadline, and not the deadline itself: clocks of machines differ.
  absl::Duration time_left = absl::InfiniteDuration();
  bool trace = false;
  int stages = kStagesDefault;  // of the plan: the coordinator weighed them, workers do not
  int64_t q_start = 0;          // position of the first query
  TokenRange keys;              // that are seen, of the first kv_tokens
};

// One context's part of a Step: tokens [start, start + k_tokens) are appended, then the last
// q_tokens of the first start + k_tokens attended over the pages of this rank.
struct StepItem {
  uint64_t epoch = 0;
  ContextId context = 0;
  int layer = 0;
  int64_t start = 0;
  int64_t k_tokens = 0;  // 0: nothing to append
  int64_t q_tokens = 0;  // 0: no query, or none that sees a page of this rank
  float scale = 0;
  std::string pattern = {};  // empty: the context's for this layer
  size_t append_bytes = 0;   // its tensors in the payload
  size_t query_bytes = 0;
  AppendMark mark = {};
};

// The decode step of many contexts. The payload's tensors are, item by item, what this rank stores
// of the append (PackAppend) and its queries [q_tokens, query heads of the rank, head_dim] in the
// context's dtype.
struct Step {
  uint64_t request = 0;
  absl::Duration time_left = absl::InfiniteDuration();
  std::vector<StepItem> items;  // at most kStepsAtOnceMax; their tensors are the payload's bytes
};

struct Cancel {
  uint64_t request = 0;
};

// Zeroes and frees a context's KV.
struct Release {
  uint64_t request = 0;
  uint64_t epoch = 0;
  ContextId context = 0;
};

// The end of a task. Of an Attend that went well the payload is the rank's answer_packed.
struct Done {
  uint64_t request = 0;
  uint64_t epoch = 0;
  absl::Status status;
  int64_t context_kv_bytes = 0;  // that the context holds on this worker now
  int64_t bytes_sent = 0;        // of an Attend: payload, as RankResult
  int64_t bytes_received = 0;
  std::vector<TraceSpan> spans = {};  // of a traced Attend; `process` is the receiver's to fill
};

// What became of each item of a Step, in its order. The payload's tensors are the partials of those
// with queries that went well: out [q_tokens, query heads of the rank, v_head_dim] f32, then lse.
struct StepItemDone {
  absl::Status status;
  int64_t context_kv_bytes = 0;
};
struct StepDone {
  uint64_t request = 0;
  std::vector<StepItemDone> items;
};

using Body = std::variant<Hello, Refused, Welcome, Heartbeat, HeartbeatSeen, Open, Append, Trim,
                          Attend, Cancel, Release, Done, Truncate, Fork, Step, StepDone, Fenced,
                          Inventory, Resume, Expect, Read>;

// A payload of tensors goes only with Append, Attend, Done (of an Attend or a Read), Step and
// StepDone.
inline constexpr size_t kSecretBytes = 16;
inline constexpr uint64_t kExpectBytesMax = uint64_t{1} << 40;
Message Encode(const Body& body, Buffer tensors = {});

// INVALID_ARGUMENT names the message and its field.
absl::StatusOr<Body> Decode(const Message& message);

}  // namespace annulus::wire
