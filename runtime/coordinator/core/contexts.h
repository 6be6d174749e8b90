// Contexts: the contexts of a cluster, who holds them and what of them is committed.
//
// A context whose ranks are not all held is lost, or waits for holders that were cut off and may
// join again (absent.cc). One with copies goes on with them at a new epoch, with the tokens that
// were committed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "annulus/types.h"
#include "base/shared_bound.h"
#include "runtime/context/layer_state.h"
#include "runtime/coordinator/core/events.h"
#include "runtime/coordinator/core/members.h"
#include "runtime/coordinator/core/tenants.h"
#include "runtime/coordinator/limits.h"
#include "runtime/protocol/cluster/wire.h"

namespace annulus {

// A block that forks hold together, each of which has a handle of it.
struct SharedBlock {};

struct Layer {
  int64_t tokens = 0;          // committed
  int64_t truncations = 0;     // that took tokens of it
  CallId appending = 0;        // the append in flight; 0: none
  int64_t horizon = 0;         // that the ranks have been sent
  uint64_t append_number = 0;  // of the last append that began
  // The last append that went well.
  RequestKey last_key;
  TokenRange last_tokens;
  // Forks may hold the blocks before this one too. Nothing is known of those that a predecessor of
  // this coordinator made.
  int64_t forked_blocks = 0;
  // The last block, if it is a part and all that hold it are known; else null.
  std::shared_ptr<const SharedBlock> last_block;

  // An append from `start` on is on its way to the ranks. Forks that come after it share its
  // blocks.
  void Advance(int64_t start) {
    horizon = std::max(horizon, HorizonOf(start));
    forked_blocks = std::min(forked_blocks, start / kBlockTokens);
  }
  // Whether the next append copies the block in which it begins, since forks hold it too.
  bool AppendCopies() const {
    if (tokens % kBlockTokens == 0) return false;
    return last_block != nullptr ? last_block.use_count() > 1
                                 : tokens / kBlockTokens < forked_blocks;
  }
  // A fork is about to begin as a copy of the layer, with its first `cut` tokens.
  void Share(int64_t cut) {
    const int64_t last = tokens / kBlockTokens;
    const bool is_last = cut % kBlockTokens != 0 && cut / kBlockTokens == last;
    if (is_last && last >= forked_blocks && appending == 0) {
      last_block = std::make_shared<SharedBlock>();
    }
    forked_blocks = std::max(forked_blocks, BlocksOf(cut));
  }
  void Commit(TokenRange range, RequestKey key) {
    tokens = range.end;
    last_key = key;
    last_tokens = range;
    last_block.reset();  // the one in which it began is the layer's own now
  }
  // The tokens from `cut` on are forgotten.
  void Cut(int64_t cut) {
    if (cut >= tokens) return;
    ++truncations;
    if (cut % kBlockTokens == 0 || cut / kBlockTokens != tokens / kBlockTokens) last_block.reset();
    tokens = cut;
    horizon = std::min(horizon, HorizonOf(cut));
  }
};

// A holder that was cut off, with all that was committed then: nothing is, until it is back or the
// context goes on without it.
struct Absent {
  std::string address;
  std::string label;  // as Member's
  int rank = 0;
};

// What a move (mover.h) asks of the calls on its context.
enum class Moving {
  kNo,
  kCopying,    // nothing
  kHoldsOff,   // appends wait
  kSwitching,  // all wait
};

struct Context {
  ShardMapPtr map;
  bool created = false;  // every holder has opened it
  Moving moving = Moving::kNo;
  int64_t truncations = 0;
  int calls = 0;    // in flight, that work on its tokens or send theirs
  absl::Time used;  // by a call, last
  std::vector<Layer> layers;
  std::map<WorkerId, int64_t> kv_bytes;  // by holder
  std::string lost_to;         // the worker that took its KV along; empty: nothing is lost
  bool given_up = false;       // lost in a restart: what was committed is not known any more
  std::vector<Absent> absent;  // those that it waits for, or is lost without
  absl::Time absent_until = absl::InfinitePast();

  const std::string& owner() const { return map->spec.owner; }
  bool is_whole() const { return lost_to.empty() && absent.empty(); }
  ContextState state() const;
  bool is_degraded() const {
    return is_whole() && std::ssize(map->holders) < int64_t{map->world} * map->spec.replicas;
  }
  bool is_idle() const;        // whether it may end by itself
  absl::Time expires() const;  // at the earliest
  int64_t kv_bytes_sum() const;
  // UNAVAILABLE while it changes hands or waits for workers, DATA_LOSS if it is lost.
  absl::Status CheckUsable() const;
  absl::Status CheckNotSwitching() const;
  // INVALID_ARGUMENT if it has no such layer.
  absl::Status CheckLayer(int layer) const;
  absl::StatusOr<Layer*> FindLayer(int layer);
  // INVALID_ARGUMENT if it does not have these tokens, or cannot go back there.
  absl::Status CheckCut(int64_t tokens) const;
  // It goes on with what is committed, held as `held` says.
  wire::Resume Resume(const Members& members, const ShardMap& held) const;
  ContextInfo Info(absl::Time now) const;
  ContextInfo InfoWithoutPatterns(absl::Time now) const;
};

class Contexts {
 public:
  Contexts(const CoordinatorLimits& limits, absl::Duration heartbeat_timeout,
           const Incarnation& incarnation, Outbox& out, Members& members, Tenants& tenants)
      : limits_(limits),
        heartbeat_timeout_(heartbeat_timeout),
        recovery_wait_(incarnation.recovery_wait),
        last_id_(incarnation.number - 1),
        out_(out),
        members_(members),
        tenants_(tenants),
        count_(WordsOf("contexts_max"), limits.contexts_max),
        layers_(WordsOf("layers_max"), limits.layers_max),
        ended_(kEndedShownMax) {}

  // Null if there is none. `Find` knows only those of which callers have been told.
  Context* Find(ContextId id);
  const Context* Find(ContextId id) const;
  Context& at(ContextId id) { return contexts_.at(id); }
  const std::map<ContextId, Context>& all() const { return contexts_; }
  bool Has(ContextId id) const { return contexts_.contains(id); }
  ContextId NewId() { return ++last_id_; }
  // Whether the worker holds one that is not lost.
  bool Need(WorkerId id) const;

  // These tell the holders, which are to answer `request`. What is made is not `created` yet.
  // RESOURCE_EXHAUSTED names the bound.
  absl::StatusOr<Context*> Create(const ContextSpec& spec, CallId request);
  absl::StatusOr<Context*> Fork(Context& parent, std::optional<int64_t> tokens, CallId request);
  absl::Status Truncate(Context& context, int64_t tokens, CallId request);
  // request 0: nobody answers.
  void Release(ContextId id, CallId request);

  // Tells a map's holders to open it. context: 0 for what a context moves to, which answers nobody
  // yet.
  void Open(const ShardMap& map, uint64_t request, ContextId context);

  // A context that is already held as its map says.
  void Add(Context context);
  // The map is replaced; its epoch is the current one.
  void SetMap(Context& context, ShardMap map) const;
  void NoteBytes(Context& context, WorkerId id, int64_t bytes);

  // absent.cc. The worker holds nothing any more.
  void LoseHolder(WorkerId id);
  // Whether the worker is a holder of the context again, which it was when it was cut off.
  bool TakeUp(WorkerId id, const wire::Inventory& inventory);
  // Contexts that wait for holders that were cut off.
  int64_t CountWaiting() const;
  // leases.cc. A call uses the context, which begins (calls 1) or ends (−1) with it.
  void Use(Context& context, int calls = 0);
  // Time in which the coordinator stood still counts for no lease.
  void NoteStandStill(absl::Duration length);
  // Has contexts go that are not used so that a worker may store so many bytes more, if that is
  // enough: whatever comes next on its link finds the room.
  bool MakeRoom(WorkerId id, int64_t bytes);
  // Why a context ended that nobody released, if the caller may know; OK if none did. Of so many
  // contexts made one after the other all are remembered.
  static constexpr size_t kEndedShownMax = 8192;
  absl::Status WhyEnded(ContextId id, const Caller& caller) const;
  // Contexts that ended so: all of them, or of the last ones those that the caller may know.
  struct EndedCounts {
    int64_t expired = 0;
    int64_t evicted = 0;
  };
  EndedCounts CountEnded(const Caller& caller) const;

  // These are to be called when time has passed.
  void EndAbsences();
  void EndLeases();
  absl::Time NextTimer() const;

 private:
  static BoundWords WordsOf(absl::string_view bound) {
    return {
        .name = bound, .peer = "its owner", .taker = "this context", .advice = "release contexts"};
  }
  absl::Status CheckRoom(const std::string& owner, int64_t layers) const;
  // The context is there from now on (1), or will be no more (−1).
  void Count(const Context& context, int contexts);
  void LoseHolder(Context& context, WorkerId id);
  void EndAbsence(Context& context);
  void GoOn(Context& context);
  // A context that ended by itself: its lease passed, or room was made for what that worker stores.
  struct Ended {
    ContextId id = 0;  // 0: none
    std::string owner;
    double lease = 0;
    WorkerId full = 0;  // 0: the lease
  };
  static std::string WhyOf(const Ended& ended);
  void EndUnused(const Context& context, WorkerId full = 0);

  const CoordinatorLimits& limits_;
  const absl::Duration heartbeat_timeout_;
  const absl::Duration recovery_wait_;
  ContextId last_id_;
  Outbox& out_;
  Members& members_;
  Tenants& tenants_;
  std::map<ContextId, Context> contexts_;
  // By owner. What is nobody's is of admins, who may release others' contexts.
  SharedBound count_;
  SharedBound layers_;
  absl::Time absent_due_ = absl::InfiniteFuture();  // no context waits for less long
  absl::Time leases_due_ = absl::InfiniteFuture();  // no lease ends before
  absl::Time leases_looked_ = absl::InfinitePast();
  // By id modulo its size: the last ones. Made once, since a piece of memory for each would keep
  // the pages among which it lies for as long as it is remembered.
  std::vector<Ended> ended_;
  EndedCounts ended_counts_;
};

}  // namespace annulus
