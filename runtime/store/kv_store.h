// KvStore: the KV pages that one worker holds, of many contexts.
//
// Pages lie in the host's memory or in that of a GPU. Bytes are counted by pages and reserved
// before anything is stored: an append that does not fit leaves no trace. A page that forks share
// counts once, also where the contexts of one owner are counted together. What contexts and their
// layers take beside pages is counted apart and has a bound of its own (table_bytes_max), an eighth
// of that of the pages, of which one owner has at most half; a layer takes nothing before its first
// token. A page is sealed with a CRC32C once its block is full, and checked by Verify before it
// leaves the worker; where a pattern of the context chooses keys by data, with summaries of its
// keys too, which count as its bytes. Pages are zeroed when they are freed. A KV-efficient context
// lets go of pages as it grows (retention.h).
//
// Calls on different layers may be made at once, and any number that only read one (Read, Table,
// Verify). A call that changes a layer needs it for itself, and what Table gave is used up before;
// Open, Fork (of the new context), Truncate, RollBack and Release need all of theirs, Fork reads
// its parent's. TaskQueue keeps tasks apart so. Counters are thread-safe.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/types.h"
#include "attention/kv_view.h"
#include "attention/select/choose.h"
#include "base/shared_bound.h"
#include "base/thread_pool.h"
#include "runtime/context/layer_state.h"
#include "runtime/context/layout.h"
#include "runtime/context/owner_bytes.h"
#include "runtime/context/retention.h"
#include "runtime/store/byte_count.h"
#include "runtime/store/page_io.h"
#include "runtime/store/page_table.h"
#include "sharding/layout.h"

namespace annulus {

class KvStore {
 public:
  // Pages lie in `space`; large appends are shared out over `pool` (null: nobody helps). Both
  // outlive this.
  explicit KvStore(int64_t kv_bytes_limit, MemorySpace& space = HostMemory(),
                   ThreadPool* pool = nullptr)
      : kv_bytes_limit_(kv_bytes_limit),
        space_(space),
        pool_(pool),
        tables_({.name = "table_bytes_max",
                 .value = " (an eighth of kv_bytes_limit)",
                 .peer = "its owner",
                 .advice = "release contexts"},
                std::max(kTableBytesMin, kv_bytes_limit / 8)) {}

  // A context of which this worker is `rank` of `world`. ALREADY_EXISTS if it is open,
  // RESOURCE_EXHAUSTED names table_bytes_max.
  absl::Status Open(ContextId id, const ContextSpec& spec, int world, int rank);

  // Stores this rank's part of the layer's tokens; what was there from tokens.begin on is
  // overwritten. `packed` is what PackAppend made. The layer's horizon is then that of
  // tokens.begin, unless another is named. NOT_FOUND for an unknown context, RESOURCE_EXHAUSTED
  // names kv_bytes_limit or table_bytes_max or says that the memory itself is full, DATA_LOSS if
  // `packed` has another size, FAILED_PRECONDITION for a gap.
  absl::Status Append(ContextId id, int layer, TokenRange tokens,
                      absl::Span<const std::byte> packed, const AppendMark& mark = {},
                      std::optional<int64_t> horizon = {});

  // Such appends, each to a layer of its own, and how each ended: one that fails leaves the others
  // alone. What they bring to a device goes there in one copy; if that fails, all do.
  struct LayerAppend {
    ContextId context = 0;
    int layer = 0;
    TokenRange tokens;
    absl::Span<const std::byte> packed;
    AppendMark mark = {};
    std::optional<int64_t> horizon = {};
  };
  std::vector<absl::Status> AppendAll(absl::Span<const LayerAppend> appends);

  // What Append was given of the layer's tokens, at `to`, which has AppendBytes; zeros for what was
  // let go of. DATA_LOSS as Verify, FAILED_PRECONDITION beyond what is stored.
  absl::Status Read(ContextId id, int layer, TokenRange tokens, std::byte* to);

  // Takes an append back: forgets the layer's tokens from `tokens` on, with the key of who appended
  // them, and frees the pages they had alone.
  absl::Status TruncateLayer(ContextId id, int layer, int64_t tokens);
  // Makes the layers what is said of them: forgets the tokens beyond it, lets go of what no query
  // from the horizon on can need. FAILED_PRECONDITION if that is not a part of what is stored.
  absl::Status RollBack(ContextId id, const std::vector<LayerState>& layers);
  // Forgets all layers' tokens from `tokens` on.
  absl::Status Truncate(ContextId id, int64_t tokens);

  // A context that begins as `parent`, with the first tokens[layer] of each layer. Takes no bytes:
  // pages are shared until one of the two writes. NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION
  // where the parent has fewer tokens, or RESOURCE_EXHAUSTED as Open.
  absl::Status Fork(ContextId parent, ContextId id, const std::vector<int64_t>& tokens);

  // Frees all of a context.
  absl::Status Release(ContextId id);

  // The pages of a layer, over this rank's KV heads; with room for all blocks of `kv_tokens`
  // tokens, which must be stored. Valid until the next change of the context.
  absl::StatusOr<const KvTable*> Table(ContextId id, int layer, int64_t kv_tokens);

  // The same for a selection, with the summaries of sealed pages that are kept: those that the
  // patterns of the context's layer ask for.
  absl::StatusOr<SelectKeys> KeysToSelect(ContextId id, int layer, int64_t kv_tokens,
                                          const PageSummary& form);
  // The same of a track's layer.
  absl::StatusOr<SelectKeys> RowsToSelect(ContextId id, int layer, int64_t kv_tokens);

  struct Shard {
    ContextSpec spec;
    int world = 1;
    int rank = 0;
    HeadMap heads;                    // HeadMapOf
    std::vector<ContextSpec> tracks;  // TrackSpecs

    // What a stored layer's rows are, and where the first `tokens` lie.
    const ContextSpec& SpecOf(int layer) const { return SpecOfLayer(spec, tracks, layer); }
    Layout layout(int layer, int64_t tokens) const {
      return LayoutOfLayer(spec, tracks, layer, world, heads, tokens);
    }
    HeadRanges kv_heads(int layer) const { return layout(layer, 0).KvHeads(rank); }
  };
  // Valid until the context is released.
  absl::StatusOr<const Shard*> Find(ContextId id) const;
  // What a layer is attended with unless a call says otherwise; of a context that is held.
  const Pattern& PatternOfLayer(ContextId id, int layer) const;

  // DATA_LOSS naming the page if a sealed page among these (those not held are passed over) has
  // changed since it was sealed.
  absl::Status Verify(ContextId id, int layer, HeadRange kv_heads, const BlockSet& blocks);

  std::vector<ContextId> ContextIds() const;
  // Of a context that is held, by layer.
  std::vector<LayerState> Layers(ContextId id) const;

  // What the context holds, shared pages included, and what all contexts of its owner hold. Those
  // that are nobody's are not counted together: 0.
  struct Held {
    int64_t context_bytes = 0;
    int64_t owner_bytes = 0;
  };
  Held HeldBy(ContextId id) const;
  // The count of its owner, which goes on when the context is gone; null if it is nobody's.
  std::shared_ptr<const ByteCount> OwnerCount(ContextId id) const;
  // What owners hold, of at most `owners_max` of them: some in turn, so that what was told too late
  // or got lost is put right after a while, then those of whom this last told another count.
  // Whoever has no context any more is told of for some time.
  std::vector<OwnerBytes> TellOwners(size_t owners_max);
  int64_t kv_bytes() const { return kv_bytes_.bytes(); }
  int64_t kv_bytes_limit() const { return kv_bytes_limit_; }
  // What contexts and layers take beside pages, about.
  int64_t table_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return tables_.in_use();
  }
  int64_t contexts() const { return contexts_count_.load(std::memory_order_relaxed); }
  // That KV-efficient contexts have let go of so far.
  int64_t evicted_bytes() const { return evicted_bytes_.load(std::memory_order_relaxed); }

 private:
  struct Layer {
    int64_t tokens = 0;   // stored; a layer's tokens have no gaps, but for what was let go of
    int64_t horizon = 0;  // as in retention.h
    AppendMark last = {};
    TokenRange last_tokens = {};
    PageTable pages;
  };
  struct Context {
    Shard shard;
    std::shared_ptr<ByteCount> owned;  // the owner's count; null: it is nobody's
    std::shared_ptr<const Retention> retention;
    std::vector<std::unique_ptr<Layer>> layers;  // null before the first token
    int64_t table_bytes = 0;                     // of it all

    int64_t layer_bytes(int layer) const;
  };
  static constexpr int64_t kTableBytesMin = int64_t{1} << 20;

  // Owners that have a context, or had one.
  struct Owner {
    std::shared_ptr<ByteCount> count;
    int64_t told = 0;
    int told_gone = 0;  // how often it was told that nothing of it is left
  };
  static constexpr size_t kOwnersInTurn = 16;
  static constexpr int kToldGoneMax = 10;

  absl::StatusOr<Context*> FindContext(ContextId id) const;
  std::shared_ptr<ByteCount> CountOf(const std::string& owner);
  OwnerBytes Tell(std::map<std::string, Owner>::iterator owner);
  ByteCount* CountOf(const Context& context) {
    return context.owned != nullptr ? context.owned.get() : &kv_bytes_;
  }
  // Null for a layer without tokens.
  absl::StatusOr<Layer*> FindLayer(ContextId id, int layer, Context** context) const;
  absl::StatusOr<Layer*> MakeLayer(Context& context, int layer);
  static std::vector<PageSummary> SummariesOf(const Context& context, int layer, MemoryKind kind);
  absl::Status Add(ContextId id, std::unique_ptr<Context> context, int64_t table_bytes);
  // With the mutex held.
  absl::Status ReserveTables(Context& context, int64_t bytes);
  // Counts the pages that an append needs, if there is room for them.
  absl::StatusOr<int64_t> Reserve(const Context& context, const Layer& layer, const Layout& layout,
                                  TokenRange tokens);
  absl::Status AppendRows(const LayerAppend& append, RowsUnderWay* rows);
  void Evict(const Context& context, int layer, int64_t horizon, Layer& into);
  static void Cut(Layer& layer, int64_t tokens);
  static LayerState StateOf(const Layer* layer);

  const int64_t kv_bytes_limit_;
  MemorySpace& space_;
  ThreadPool* const pool_;
  ByteCount kv_bytes_;
  std::atomic<int64_t> contexts_count_ = 0;
  std::atomic<int64_t> evicted_bytes_ = 0;
  // Of the map, and of what a context knows of its layers: which there are, what they take.
  mutable std::mutex mutex_;
  SharedBound tables_;                   // bytes beside pages, by owner
  std::map<std::string, Owner> owners_;  // under mutex_
  std::string last_told_;                // of those told in turn
  std::map<ContextId, std::unique_ptr<Context>> contexts_;
};

}  // namespace annulus
