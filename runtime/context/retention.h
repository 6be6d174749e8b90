// What a KV-efficient context (spec.kv_efficient) keeps: per layer and KV head the blocks that its
// patterns can still need. Coordinator and workers each work it out from the spec and a layer's
// horizon, and agree.
//
// The horizon of a layer is the start of the block in which its last append begins: a query before
// it is not asked for any more, so the blocks that only such queries see are let go of, as
// Pattern::Evictable says. Pure functions over an immutable value; thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "annulus/types.h"
#include "attention/pattern.h"

namespace annulus {

constexpr int64_t HorizonOf(int64_t append_start) {
  return append_start / kBlockTokens * kBlockTokens;
}

class Retention {
 public:
  // INVALID_ARGUMENT names the field if a pattern does not parse, or if there is none by which a
  // kv_efficient context could let go.
  static absl::StatusOr<Retention> Of(const ContextSpec& spec);

  // What a layer is attended with unless a call says otherwise; a track's layer has the pattern of
  // the context's.
  const Pattern& pattern(int layer) const;

  // The blocks of a KV head that are gone at a layer's horizon: none unless kv_efficient. A later
  // horizon adds blocks and brings none back.
  BlockSet Gone(int layer, int kv_head, int64_t horizon) const;

  // INVALID_ARGUMENT names layer, KV head and the first missing block if queries `q` over the keys
  // up to `keys_end` would read under `pattern` what is gone; what `stop` says if it has stopped.
  absl::Status CheckReads(int layer, int64_t horizon, const Pattern& pattern, TokenRange q,
                          int64_t keys_end, const Stop& stop = {}) const;

  // The same for any query from `tokens` on under the layer's own pattern: whether the layer can go
  // back there.
  absl::Status CheckCut(int layer, int64_t horizon, int64_t tokens) const;

 private:
  Retention() = default;

  bool kv_efficient_ = false;
  std::vector<Pattern> patterns_;  // one for all layers, or one per layer
};

}  // namespace annulus
