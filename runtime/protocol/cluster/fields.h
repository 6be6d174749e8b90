// The fields of the messages between coordinator and workers (wire.h), numbered as they travel, and
// of what they consist of. Private to this folder.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "attention/key_list.h"
#include "runtime/fields/values.h"
#include "runtime/limits.h"
#include "runtime/protocol/cluster/wire.h"

namespace annulus {

constexpr auto DescriptionOf(const TokenRange*) {
  using T = TokenRange;
  return Describe("TokenRange", Field(1, "begin", &T::begin, Between(0, kContextTokensMax)),
                  Field(2, "end", &T::end, Between(0, kContextTokensMax)));
}
absl::Status CheckWhole(const TokenRange& range);

constexpr auto DescriptionOf(const AppendMark*) {
  using T = AppendMark;
  return Describe("AppendMark", Field(1, "append_number", &T::append_number),
                  Field(2, "key", &T::key));
}

constexpr auto DescriptionOf(const LayerState*) {
  using T = LayerState;
  return Describe("LayerState", Field(1, "tokens", &T::tokens, Between(0, kContextTokensMax)),
                  Field(2, "horizon", &T::horizon, Between(0, kContextTokensMax)),
                  Field(3, "last", &T::last), Field(4, "last_tokens", &T::last_tokens));
}
absl::Status CheckWhole(const LayerState& layer);

constexpr auto DescriptionOf(const OwnerBytes*) {
  using T = OwnerBytes;
  return Describe("OwnerBytes", Field(1, "owner", &T::owner, SizeBetween(1, kTenantBytesMax)),
                  Field(2, "kv_bytes", &T::kv_bytes, Between(0, kWorkerBytesMax)));
}

template <>
struct TextForm<KeyListData::Unit> {
  static std::string Write(KeyListData::Unit unit) { return std::string(Name(unit)); }
  static std::optional<KeyListData::Unit> Parse(absl::string_view text);
  static bool Known(KeyListData::Unit) { return true; }
  static std::string Expected() { return "blocks or tokens"; }
};

template <>
struct TextForm<KeyListData::Rows> {
  static std::string Write(KeyListData::Rows rows) { return std::string(Name(rows)); }
  static std::optional<KeyListData::Rows> Parse(absl::string_view text);
  static bool Known(KeyListData::Rows) { return true; }
  static std::string Expected() { return "token, block or all"; }
};

template <>
struct TextForm<ColumnTrip> {
  static std::string Write(ColumnTrip trip) { return std::string(Name(trip)); }
  static std::optional<ColumnTrip> Parse(absl::string_view text) { return ParseColumnTrip(text); }
  static bool Known(ColumnTrip) { return true; }
  static std::string Expected() { return "sums, votes or rows"; }
};

// What else must hold of it, whoever binds it sees to (BindLists).
constexpr auto DescriptionOf(const KeyListData*) {
  using T = KeyListData;
  return Describe("KeyListData", Field(1, "unit", &T::unit), Field(2, "rows", &T::rows),
                  Field(3, "block_tokens", &T::block_tokens), Field(4, "heads", &T::heads),
                  Field(5, "q_begin", &T::q_begin),
                  Field(6, "begin", &T::begin, SizeAtMost(kListRowsMax)),
                  Field(7, "keys", &T::keys, SizeAtMost(kListKeysMax)));
}

namespace wire {

inline constexpr size_t kTextBytesMax = 4096;
inline constexpr size_t kForgetListsMax = 1024;
inline constexpr size_t kAddressesMax = 1 << 16;
inline constexpr size_t kSpansMax = 1 << 16;

// Bounds that recur.
inline constexpr Bounds kLayer = Between(0, kLayersMax - 1);
inline constexpr Bounds kPosition = Between(0, kContextTokensMax);
inline constexpr Bounds kLayerTokens = {.min = 0, .max = kContextTokensMax, .size_max = kLayersMax};
inline constexpr Bounds kTokens = Between(1, kContextTokensMax);
inline constexpr Bounds kBytes = Between(0, kWorkerBytesMax);
inline constexpr Bounds kAddresses = SizeBetween(1, kAddressesMax);

constexpr auto DescriptionOf(const Hello*) {
  using T = Hello;
  return Describe("Hello", Field(1, "protocol", &T::protocol),
                  Field(2, "name", &T::name, SizeAtMost(kTextBytesMax)),
                  Field(3, "backend", &T::backend, SizeAtMost(kTextBytesMax)),
                  Field(4, "address", &T::address, SizeAtMost(kTextBytesMax)),
                  Field(5, "kv_bytes_limit", &T::kv_bytes_limit, kBytes),
                  Field(6, "coordinator", &T::coordinator),
                  Field(7, "contexts", &T::contexts, Between(0, kWorkerContextsMax)),
                  Field(8, "data_address", &T::data_address, SizeAtMost(kTextBytesMax)));
}

constexpr auto DescriptionOf(const Welcome*) {
  using T = Welcome;
  return Describe("Welcome", Field(1, "worker", &T::worker, AtLeast(1)),
                  Field(2, "coordinator", &T::coordinator),
                  Field(3, "peer_key", &T::peer_key, SizeAtMost(LinkKey::kBytes)));
}

constexpr auto DescriptionOf(const Fenced*) {
  return Describe("Fenced");
}

constexpr auto DescriptionOf(const Refused*) {
  return Describe("Refused", Field(1, "why", &Refused::why, SizeAtMost(kTextBytesMax)));
}

constexpr auto DescriptionOf(const Heartbeat*) {
  using T = Heartbeat;
  return Describe("Heartbeat", Field(1, "kv_bytes", &T::kv_bytes, kBytes),
                  Field(2, "leaves", &T::leaves),
                  Field(3, "owners", &T::owners, SizeAtMost(kOwnersMax)));
}

constexpr auto DescriptionOf(const HeartbeatSeen*) {
  return Describe("HeartbeatSeen", Field(1, "may_leave", &HeartbeatSeen::may_leave));
}

constexpr auto DescriptionOf(const Copy*) {
  using T = Copy;
  return Describe("Copy", Field(1, "rank", &T::rank, AtLeast(0)),
                  Field(2, "address", &T::address, SizeAtMost(kTextBytesMax)));
}

constexpr auto DescriptionOf(const Open*) {
  using T = Open;
  return Describe(
      "Open", Field(1, "request", &T::request), Field(2, "epoch", &T::epoch),
      Field(3, "storage_id", &T::storage_id), Field(4, "spec", &T::spec),
      Field(5, "rank", &T::rank, AtLeast(0)), Field(6, "addresses", &T::addresses, kAddresses),
      Field(7, "copies", &T::copies, SizeAtMost(kAddressesMax)), Field(8, "context", &T::context));
}
absl::Status CheckWhole(const Open& m);

constexpr auto DescriptionOf(const Read*) {
  using T = Read;
  return Describe("Read", Field(1, "request", &T::request), Field(2, "epoch", &T::epoch),
                  Field(3, "storage_id", &T::storage_id), Field(4, "layer", &T::layer, kLayer),
                  Field(5, "start", &T::start, kPosition), Field(6, "tokens", &T::tokens, kTokens));
}
absl::Status CheckWhole(const Read& m);

constexpr auto DescriptionOf(const List*) {
  return Describe("List", Field(1, "name", &List::name, SizeAtMost(kListNameBytesMax)),
                  Field(2, "data", &List::data), Field(3, "number", &List::number));
}
absl::Status CheckWhole(const List& m);

constexpr auto DescriptionOf(const WorkItem*) {
  using T = WorkItem;
  return Describe(
      "WorkItem", Field(1, "epoch", &T::epoch), Field(2, "storage_id", &T::storage_id),
      Field(3, "layer", &T::layer, kLayer), Field(4, "start", &T::start, kPosition),
      Field(5, "k_tokens", &T::k_tokens, kPosition), Field(6, "mark", &T::mark),
      Field(7, "horizon", &T::horizon, kPosition), Field(8, "append_bytes", &T::append_bytes),
      Field(9, "q_start", &T::q_start, kPosition), Field(10, "q_tokens", &T::q_tokens, kPosition),
      Field(11, "kv_tokens", &T::kv_tokens, kPosition), Field(12, "keys", &T::keys),
      Field(13, "scale", &T::scale),
      Field(14, "pattern", &T::pattern, SizeAtMost(kPatternBytesMax)),
      Field(15, "query_bytes", &T::query_bytes), Field(16, "plan", &T::plan),
      Field(17, "stages", &T::stages, Between(0, kStagesMax)), Field(18, "channel", &T::channel),
      Field(19, "merge_into", &T::merge_into, Between(0, kWorkersMax - 1)),
      Field(20, "merges", &T::merges, Between(0, kWorkersMax - 1)),
      Field(21, "lists", &T::lists, SizeAtMost(kListsMax)),
      Field(22, "select", &T::select, SizeAtMost(kListsMax)),
      Field(23, "index_heads", &T::index_heads, Between(0, kHeadsMax)),
      Field(24, "column_trip", &T::column_trip), Field(25, "chooses", &T::chooses),
      Field(26, "counts", &T::counts));
}
absl::Status CheckWhole(const WorkItem& m);

constexpr auto DescriptionOf(const Work*) {
  using T = Work;
  return Describe("Work", Field(1, "request", &T::request), Field(2, "time_left_ns", &T::time_left),
                  Field(3, "trace", &T::trace),
                  Field(4, "items", &T::items, SizeAtMost(kStepsAtOnceMax)),
                  Field(5, "traceparent", &T::traceparent, SizeAtMost(kTraceparentBytesMax)),
                  Field(6, "forget_lists", &T::forget_lists, SizeAtMost(kForgetListsMax)),
                  Field(7, "tenant", &T::tenant));
}
absl::Status CheckWhole(const Work& m);

constexpr auto DescriptionOf(const ExpectUpload*) {
  using T = ExpectUpload;
  return Describe("ExpectUpload", Field(1, "work", &T::work),
                  Field(2, "secret", &T::secret, SizeBetween(kSecretBytes, kSecretBytes)),
                  Field(3, "dtype", &T::dtype),
                  Field(4, "tenant", &T::tenant, SizeAtMost(kTenantBytesMax)));
}
absl::Status CheckWhole(const ExpectUpload& m);

constexpr auto DescriptionOf(const TruncateLayer*) {
  using T = TruncateLayer;
  return Describe("TruncateLayer", Field(1, "storage_id", &T::storage_id),
                  Field(2, "layer", &T::layer, kLayer), Field(3, "tokens", &T::tokens, AtLeast(0)));
}

constexpr auto DescriptionOf(const Truncate*) {
  using T = Truncate;
  return Describe("Truncate", Field(1, "request", &T::request), Field(2, "epoch", &T::epoch),
                  Field(3, "storage_id", &T::storage_id),
                  Field(4, "tokens", &T::tokens, AtLeast(0)));
}

constexpr auto DescriptionOf(const Fork*) {
  using T = Fork;
  return Describe("Fork", Field(1, "request", &T::request), Field(2, "epoch", &T::epoch),
                  Field(3, "storage_id", &T::storage_id), Field(4, "parent", &T::parent),
                  Field(5, "tokens", &T::tokens, kLayerTokens));
}

constexpr auto DescriptionOf(const ItemName*) {
  using T = ItemName;
  return Describe("ItemName", Field(1, "storage_id", &T::storage_id),
                  Field(2, "layer", &T::layer, kLayer));
}

constexpr auto DescriptionOf(const Cancel*) {
  using T = Cancel;
  return Describe("Cancel", Field(1, "request", &T::request),
                  Field(2, "items", &T::items, SizeAtMost(kStepsAtOnceMax)));
}

constexpr auto DescriptionOf(const ItemPartial*) {
  using T = ItemPartial;
  return Describe("ItemPartial", Field(1, "item", &T::item), Field(2, "bytes", &T::bytes));
}

constexpr auto DescriptionOf(const Partials*) {
  using T = Partials;
  return Describe("Partials", Field(1, "request", &T::request),
                  Field(2, "items", &T::items, SizeAtMost(kStepsAtOnceMax)));
}

constexpr auto DescriptionOf(const LinkLost*) {
  return Describe("LinkLost");
}

constexpr auto DescriptionOf(const Release*) {
  using T = Release;
  return Describe("Release", Field(1, "request", &T::request), Field(2, "epoch", &T::epoch),
                  Field(3, "storage_id", &T::storage_id));
}

constexpr auto DescriptionOf(const Done*) {
  using T = Done;
  return Describe("Done", Field(1, "request", &T::request), Field(2, "epoch", &T::epoch),
                  Field(3, "status", &T::status),
                  Field(4, "context_kv_bytes", &T::context_kv_bytes, kBytes),
                  Field(5, "owner_kv_bytes", &T::owner_kv_bytes, kBytes));
}

constexpr auto DescriptionOf(const WorkItemDone*) {
  using T = WorkItemDone;
  return Describe("WorkItemDone", Field(1, "epoch", &T::epoch), Field(2, "status", &T::status),
                  Field(3, "context_kv_bytes", &T::context_kv_bytes, kBytes),
                  Field(4, "bytes_sent", &T::bytes_sent, kBytes),
                  Field(5, "bytes_received", &T::bytes_received, kBytes),
                  Field(6, "spans", &T::spans, SizeAtMost(kSpansMax)),
                  Field(7, "owner_kv_bytes", &T::owner_kv_bytes, kBytes),
                  Field(8, "counted", &T::counted),
                  Field(9, "visited_pairs", &T::visited_pairs, AtLeast(0)),
                  Field(10, "work_pairs", &T::work_pairs, AtLeast(0)));
}

constexpr auto DescriptionOf(const WorkDone*) {
  using T = WorkDone;
  return Describe("WorkDone", Field(1, "request", &T::request),
                  Field(2, "items", &T::items, SizeAtMost(kStepsAtOnceMax)));
}

// The coordinator goes on above the epochs that workers bring it: none ever wraps.
inline constexpr int64_t kEpochMax = int64_t{1} << 62;

constexpr auto DescriptionOf(const Inventory*) {
  using T = Inventory;
  return Describe("Inventory", Field(1, "epoch", &T::epoch, Between(0, kEpochMax)),
                  Field(2, "storage_id", &T::storage_id), Field(3, "spec", &T::spec),
                  Field(4, "rank", &T::rank, AtLeast(0)),
                  Field(5, "addresses", &T::addresses, kAddresses),
                  Field(6, "layers", &T::layers, SizeAtMost(kLayersMax)),
                  Field(7, "kv_bytes", &T::kv_bytes, kBytes),
                  Field(8, "copies", &T::copies, SizeAtMost(kAddressesMax)),
                  Field(9, "context", &T::context), Field(10, "activating", &T::activating),
                  Field(11, "owner_kv_bytes", &T::owner_kv_bytes, kBytes));
}
absl::Status CheckWhole(const Inventory& m);

constexpr auto DescriptionOf(const Resume*) {
  using T = Resume;
  return Describe("Resume", Field(1, "epoch", &T::epoch), Field(2, "storage_id", &T::storage_id),
                  Field(3, "addresses", &T::addresses, kAddresses),
                  Field(4, "layers", &T::layers, SizeAtMost(kLayersMax)),
                  Field(5, "copies", &T::copies, SizeAtMost(kAddressesMax)),
                  Field(6, "request", &T::request), Field(7, "context", &T::context),
                  Field(8, "activating", &T::activating));
}
absl::Status CheckWhole(const Resume& m);

}  // namespace wire
}  // namespace annulus
