// What callers ask of the service and what it answers. Plain values. Tensors are NHD; positions are
// absolute; K and Q arrive with positions already applied (post-RoPE); lse is the natural log.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "annulus/key_list.h"
#include "annulus/placement.h"
#include "annulus/plan_kind.h"
#include "annulus/states.h"
#include "annulus/tensor.h"

namespace annulus {

using ContextId = uint64_t;

// Rows that a context keeps beside K and V, as an indexer's keys: they are stored, forked,
// truncated, moved and checked as K is, each track's layers as layers of their own (TrackLayer),
// which count rows. Row r stands for the tokens [r·ratio, (r + 1)·ratio), and is there for calls
// that see all of these; a cut at a token keeps the rows of which it keeps all.
struct Track {
  std::string name;  // 1 to 64 bytes, of no other track
  int dim = 0;       // of a head's row; a multiple of 8 up to 576
  DType dtype = DType::kBF16;
  int heads = 1;      // up to 1024
  int64_t ratio = 1;  // tokens to a row, up to 2^20
};

// One sequence's KV over all layers. Limits are checked by Validate: 1 ≤ layers ≤ 1024, those of
// tracks included, heads a multiple of kv_heads, dims multiples of 8 up to 576.
struct ContextSpec {
  int layers = 1;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  bool v_is_k_prefix = false;  // MLA: V is K's first v_head_dim dims and is not stored again
  DType dtype = DType::kBF16;  // what K and V are rounded to and stored in
  Placement placement = Placement::kTokens;
  // How tokens are cut over token groups. A context that grows takes block-cyclic; contiguous and
  // zigzag need tokens_expected, and appends beyond it are refused.
  PartitionSpec partition{PartitionKind::kBlockCyclic, 64};
  int64_t tokens_expected = 0;  // 0: grows without a known end
  // What layers are attended with when a call names no pattern: none (causal), one for all layers,
  // or one per layer. Their texts have 64 KiB together at most.
  std::vector<std::string> patterns = {};
  // Keeps per KV head only the blocks that `patterns` can still need, and frees the others as the
  // context grows: S2's local blocks and its stride. A query may be asked for again back to the
  // start of its layer's last append, one that failed included; what only older ones would read is
  // gone.
  bool kv_efficient = false;
  // Workers that hold each page, 1 or 2. With 2, as many ranks as there are pairs of workers hold
  // the context; if a worker is lost, calls in flight end with UNAVAILABLE, and the context goes on
  // from the copies: nothing that was acknowledged is lost.
  int replicas = 1;
  // Seconds without a call on it after which the context is released; 0: never. A client renews
  // the leases of contexts that it made for as long as it lives.
  double lease = 300;
  // Where the service is told to evict: when KV is full, contexts so marked that no call uses are
  // released, the least recently used first.
  bool evictable = false;
  // The tenant whose context it is, at most 128 bytes; filled in by the service: whoever is neither
  // an admin nor of this tenant finds no such context. Admins may name another tenant than theirs.
  std::string owner = {};
  std::vector<Track> tracks = {};  // 8 at most, none where kv_efficient
};

// By which number appends name the rows of track spec.tracks[track] in a layer: k is [n, heads of
// the track, dim], there is no v, and tokens are counted for themselves. Behind the context's
// layers come the first track's, then the next one's.
inline int TrackLayer(const ContextSpec& spec, int track, int layer) {
  return spec.layers * (1 + track) + layer;
}

struct ContextInfo {
  ContextId id = 0;
  uint64_t epoch = 0;  // version of the shard map that holds it
  ContextSpec spec;
  std::vector<int64_t> tokens;  // committed, by layer, those of tracks included
  int64_t kv_bytes = 0;  // over all workers, copies too; blocks shared with a fork count in both
  int64_t dense_kv_bytes = 0;  // what it would be if nothing was evicted
  std::string state;           // Name of a ContextState
  double idle_s = 0;           // since a call last used it
};

// Makes a call that changes a layer safe to repeat: the same (client, sequence) never appends to it
// twice, and a repetition answers as the first would have; while the first is in flight it gets
// UNAVAILABLE. client 0: the client library fills both.
struct RequestKey {
  uint64_t client = 0;
  uint64_t sequence = 0;

  bool given() const { return client != 0; }
  friend bool operator==(const RequestKey&, const RequestKey&) = default;
};

// Appends tokens [start, start + k.tokens) of one layer. k [n, kv_heads, head_dim] and
// v [n, kv_heads, v_head_dim] in any dtype; stored in the context's. v is empty (0 tokens) when the
// context has v_is_k_prefix.
struct AppendRequest {
  ContextId context = 0;
  int layer = 0;
  int64_t start = 0;  // must equal the layer's committed tokens
  TensorView k = {};
  TensorView v = {};
  RequestKey key = {};
};

struct AppendResult {
  uint64_t epoch = 0;
  int64_t tokens = 0;  // the layer's committed tokens now
};

// With which words of a call's pattern choose keys by the rows of a track (dsa, msa), in its layer
// or, as IndexShare has it, in another one's. None where q has no tokens.
struct IndexQueries {
  int layer = 0;  // of the track's rows (TrackLayer), which are there for all of the call's keys
  TensorView q = {};  // [n, index heads, dim of the track], n the call's; rounded to its dtype
  std::vector<float> weights = {};  // [n, index heads] for dsa, else none; 2^19 at most
};

// Attends q [n, heads, head_dim] (any dtype; rounded to the context's) at positions
// [q_start, q_start + n): of the first kv_len ≤ committed tokens' end, among them, or beyond them.
// They see keys of [keys_begin, keys_end) alone, so that parts over different keys merge
// (partials.h); positions in patterns are those of the context, of which docs cut kv_len.
struct AttendRequest {
  ContextId context = 0;
  int layer = 0;
  int64_t q_start = 0;
  int64_t kv_len = 0;
  TensorView q = {};
  std::string pattern = {};           // empty: the context's for this layer
  std::optional<PlanKind> plan = {};  // nullopt: auto
  float scale = 0;                    // 0: 1/√head_dim
  std::string request_id = {};        // appears in logs and traces; made up when empty
  bool trace = false;                 // whether the answer brings spans
  int64_t keys_begin = 0;
  std::optional<int64_t> keys_end = {};  // absent: kv_len
  std::vector<CallList> lists = {};      // what list(name) in the pattern stands for, 16 at most
  // One score for each head that takes a share of its softmax's weight and brings no value
  // (gpt-oss), natural log, −∞ for none; empty: no head has one. Leave it out where the answer is
  // merged with others: a row has its sink once (partials.h, WithSinks).
  std::vector<float> sinks = {};
  IndexQueries index = {};  // of words that have no list
};

// What a process did when, wall clock; for a trace file.
struct TraceSpan {
  std::string process;  // "coordinator", "worker 3"
  std::string name;
  int64_t begin_ns = 0;  // since the Unix epoch
  int64_t end_ns = 0;
};

struct WorkerShare {
  uint64_t worker = 0;
  int64_t work_pairs = 0;
  int64_t bytes_sent = 0;
  int64_t bytes_received = 0;
};

struct AttendStats {
  std::string plan;           // the kind that ran
  int64_t visited_pairs = 0;  // allowed (query head, query, key) triples
  int64_t work_pairs = 0;
  int64_t bytes_moved = 0;    // payload counted at the transports, coordinator and workers
  int64_t planned_bytes = 0;  // what the plan said
  double elapsed_s = 0;       // at the coordinator, from the whole request to the whole answer
  std::vector<WorkerShare> workers;
};

struct AttendResult {
  Tensor out;  // f32 [n, heads, v_head_dim]
  Tensor lse;  // f32 [n, heads, 1]
  uint64_t epoch = 0;
  AttendStats stats;
  std::vector<TraceSpan> trace;
};

// One context's part of a decode step: append k and v, if there are any, as AppendRequest at
// `start`; then attend q, if there is any, as AttendRequest with q_start + n == start + k.tokens.
// The queries of a step are answered by pass-q; k and q of one step have the same tokens, or one of
// them none.
struct StepRequest {
  ContextId context = 0;
  int layer = 0;
  int64_t start = 0;  // must equal the layer's committed tokens
  TensorView k = {};
  TensorView v = {};
  TensorView q;
  std::string pattern;  // empty: the context's for this layer
  float scale = 0;      // 0: 1/√head_dim
  RequestKey key = {};
  std::vector<CallList> lists = {};  // as in AttendRequest
  std::vector<float> sinks = {};     // as in AttendRequest
  // As in AttendRequest. Another step of the call may append the track's rows.
  IndexQueries index = {};
};

// Steps of one call.
inline constexpr int kStepsMax = 65536;

struct StepResult {
  uint64_t epoch = 0;
  int64_t tokens = 0;  // the layer's committed tokens now
  Tensor out;          // f32 [n, heads, v_head_dim]; empty without q
  Tensor lse;          // f32 [n, heads, 1]
};
using StepResults = std::vector<absl::StatusOr<StepResult>>;  // of a call, by step

// Has queries choose keys: makes the lists of the words of a pattern that do so by data, over all
// of the first kv_len tokens. Attends and steps of queries at the same positions that bring them as
// their `lists` see what they chose, in this layer or in others. In a layer of the context those
// are the words that look at its keys (quest, moba), and q is as in AttendRequest; in a track's
// (TrackLayer) those that look at its rows (dsa, msa), and q [n, index heads, dim of the track] has
// the index queries, rounded to the track's dtype.
struct SelectRequest {
  ContextId context = 0;
  int layer = 0;
  int64_t q_start = 0;
  int64_t kv_len = 0;
  TensorView q = {};
  std::string pattern = {};         // empty: the context's for this layer
  std::vector<float> weights = {};  // [n, index heads] for dsa, else none; 2^19 at most
  // Of words that weigh scores (nsa, xattention, minference, flexprefill): the attends' own. 0:
  // 1/√head_dim; in a track's layer it must be 0.
  float scale = 0;
};

struct SelectResult {
  uint64_t epoch = 0;
  std::vector<CallList> lists = {};  // by the word with all of its arguments, e.g. quest(4096,16)
};

// How votes are pooled over those around them.
enum class VotePool { kMax, kMean };

// Which keys each KV head keeps: all, where there are at most `keep`, else the last `recent` ones
// and, of those before, the keep − recent that the queries vote for most. SnapKV: the last 32
// queries, recent 32, kMax over 7. H2O: every query so far, recent keep/2, width 1.
struct KeepRule {
  int64_t keep = 0;    // at least 1
  int64_t recent = 0;  // at most keep
  VotePool pool = VotePool::kMax;
  int pool_width = 1;  // votes that count together, an odd number up to 1023; 1: each for itself
};

// Has queries choose which keys of a layer are kept, and appends the rows of these to a layer of
// another context, which is smaller: `into` is as a rule one that was made for it with the same
// spec, and the first one is released, or not, once all of its layers are through. Queries are as
// in AttendRequest, and causal: one at position p votes for keys up to p, with the weights that its
// softmax over all of them gives them; a KV head's votes are those of all of its query heads.
// Each KV head keeps keys of its own, all of them equally many: row i of a head is the i-th that it
// keeps, as it was stored. Rows of `into` are numbered anew, from `start` on, and what follows is
// appended behind them; positions that K and Q arrive with (post-RoPE) stay what they were in the
// whole context, and are the caller's to count. Tracks are not kept.
struct CompressRequest {
  ContextId context = 0;
  int layer = 0;
  int64_t q_start = 0;
  int64_t kv_len = 0;
  TensorView q = {};
  float scale = 0;  // 0: 1/√head_dim
  KeepRule rule = {};
  ContextId into = 0;  // another context, of the same KV heads, dims and dtype
  int64_t start = 0;   // must equal its committed tokens in the layer
  RequestKey key = {};
};

struct CompressResult {
  uint64_t epoch = 0;  // of `into`
  int64_t tokens = 0;  // the committed tokens of its layer now
  // The positions that were kept, by KV head: a list called "kept". Attending the whole context by
  // list(kept) sees what attending `into` does.
  CallList kept = {};
};

// A new context that begins with the parent's first `tokens` (all that are committed, layer by
// layer, if absent). Blocks are shared until one of the two writes to them.
struct ForkRequest {
  ContextId context = 0;
  std::optional<int64_t> tokens;
};

// Forgets each layer's tokens from `tokens` on.
struct TruncateRequest {
  ContextId context = 0;
  int64_t tokens = 0;
};

// Contexts with ids above `after`, ascending, at most `limit`. There may be fewer, as many as one
// message has room for: the list ends where none comes.
struct ListRequest {
  ContextId after = 0;
  int limit = 1000;
};

struct WorkerStatus {
  uint64_t id = 0;
  std::string state;    // Name of a WorkerState
  std::string backend;  // e.g. "cpu (AVX2)"
  std::string address;
  int64_t kv_bytes = 0;
  int64_t kv_bytes_limit = 0;
  std::string data_address = {};  // where clients upload to it; empty: nowhere
  double heartbeat_age_s = 0;     // since its last sign of life
  std::string name = {};          // that it was given (--name), escaped as in a C literal
};

// What a tenant has of the cluster now.
struct TenantStatus {
  std::string tenant;
  int64_t contexts = 0;
  int64_t kv_bytes = 0;         // over all workers, copies too; blocks that forks share count once
  int64_t in_flight = 0;        // calls under way
  int64_t in_flight_bytes = 0;  // of their tensors
};

// Callers who are no admins are told of what is their tenant's, and of the cluster its epoch and
// its workers: their states and how full they are.
struct ClusterStatus {
  uint64_t epoch = 0;
  std::vector<ContextInfo> contexts;  // by id; without their patterns, which Describe tells
  int64_t contexts_left_out = 0;      // how many more the message has no room for; List has them
  std::vector<WorkerStatus> workers;
  int64_t in_flight = 0;        // calls under way
  int64_t in_flight_bytes = 0;  // of their tensors
  // Contexts that ended by themselves since the coordinator began.
  int64_t contexts_expired = 0;
  int64_t contexts_evicted = 0;
  std::vector<TenantStatus> tenants;  // that have anything
};

}  // namespace annulus
