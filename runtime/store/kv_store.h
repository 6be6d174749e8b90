// KvStore: the KV pages that one worker holds, of many contexts.
//
// Bytes are counted by pages and reserved before anything is stored: an append that does not fit
// leaves no trace. A page is sealed with a CRC32C once its block is full, and checked by Verify
// before it leaves the worker. Pages are zeroed when they are freed.
// Thread-compatible (one engine thread owns it); kv_bytes() and contexts() are thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/kv_view.h"
#include "base/buffer.h"
#include "runtime/store/page_arena.h"
#include "runtime/types.h"
#include "sharding/layout.h"

namespace annulus {

class KvStore {
 public:
  explicit KvStore(int64_t kv_bytes_limit) : kv_bytes_limit_(kv_bytes_limit) {}

  // A context of which this worker is `rank` of `world`. ALREADY_EXISTS if it is open.
  absl::Status Open(ContextId id, const ContextSpec& spec, int world, int rank);

  // Stores this rank's part of the layer's tokens; what was there from tokens.begin on is
  // overwritten. `packed` is that of PackAppend. NOT_FOUND for an unknown context,
  // RESOURCE_EXHAUSTED names kv_bytes_limit, DATA_LOSS if `packed` has another size,
  // FAILED_PRECONDITION for a gap.
  absl::Status Append(ContextId id, int layer, TokenRange tokens, const Buffer& packed);

  // Forgets the layer's tokens from `tokens` on and frees the pages they had alone.
  absl::Status Trim(ContextId id, int layer, int64_t tokens);

  // Frees all of a context.
  absl::Status Release(ContextId id);

  // The pages of a layer, over this rank's KV heads; with room for all blocks of `kv_tokens`
  // tokens, which must be stored. Valid until the next change of the context.
  absl::StatusOr<const KvTable*> Table(ContextId id, int layer, int64_t kv_tokens);

  struct Shard {
    ContextSpec spec;
    int world = 1;
    int rank = 0;
  };
  absl::StatusOr<Shard> Find(ContextId id) const;

  // DATA_LOSS naming the page if a sealed page among these (those not held are passed over) has
  // changed since it was sealed.
  absl::Status Verify(ContextId id, int layer, HeadRange kv_heads, const BlockSet& blocks);

  int64_t ContextBytes(ContextId id) const;
  int64_t kv_bytes() const { return kv_bytes_.load(std::memory_order_relaxed); }
  int64_t kv_bytes_limit() const { return kv_bytes_limit_; }
  int64_t contexts() const { return contexts_count_.load(std::memory_order_relaxed); }

 private:
  struct Page {
    std::byte* data = nullptr;
    uint32_t crc = 0;
    bool sealed = false;
  };
  struct Layer {
    int64_t tokens = 0;  // stored; a layer's tokens have no gaps
    KvTable table;
    std::vector<Page> pages;  // [block, kv head of this rank]
    // By kv head of this rank, so that a head's blocks follow each other in memory: decode streams
    // through them.
    std::deque<PageArena> arenas;
  };
  struct Context {
    Context(const Shard& shard, HeadRange heads, size_t page_bytes)
        : shard(shard), kv_heads(heads), page_bytes(page_bytes), layers(shard.spec.layers) {
      for (Layer& layer : layers) {
        for (int head = 0; head < heads.count; ++head) layer.arenas.emplace_back(page_bytes);
      }
    }

    Shard shard;
    HeadRange kv_heads;
    size_t page_bytes;
    std::vector<Layer> layers;
    int64_t pages_in_use = 0;
  };

  absl::StatusOr<Layer*> FindLayer(ContextId id, int layer, Context** context);
  absl::Status Reserve(const Context& context, const Layer& layer, const Layout& layout,
                       TokenRange tokens) const;
  void GrowTables(const Context& context, Layer& layer, int64_t tokens);
  std::byte* EnsurePage(Context& context, Layer& layer, int64_t block, int head);
  void TrimLayer(Context& context, Layer& layer, int64_t tokens);

  const int64_t kv_bytes_limit_;
  std::atomic<int64_t> kv_bytes_ = 0;
  std::atomic<int64_t> contexts_count_ = 0;
  std::map<ContextId, std::unique_ptr<Context>> contexts_;
};

}  // namespace annulus
