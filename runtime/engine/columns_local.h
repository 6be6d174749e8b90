// Column passes over ranks in this process, one after the other, merged as a caller of the service
// merges them. Thread-safe functions of values.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "annulus/key_list.h"
#include "annulus/tensor.h"
#include "annulus/types.h"
#include "attention/column_selector.h"
#include "base/thread_pool.h"
#include "runtime/engine/selection.h"
#include "sharding/layout.h"

namespace annulus {

struct CompressedRows {
  Tensor k;               // [keys kept, kv_heads, head_dim]
  Tensor v;               // [keys kept, kv_heads, v_head_dim]
  KeyListData kept = {};  // their positions, by KV head
};

// What the service's Compress keeps: q [rows, heads, head_dim] at q_begin votes for the keys of k
// [tokens, kv_heads, head_dim], which v [tokens, kv_heads, v_head_dim] belongs to; all of one dtype
// in host memory. `pool` as Backend::pool. INVALID_ARGUMENT as ColumnPass.
absl::StatusOr<CompressedRows> CompressLocally(const TensorView& q, int64_t q_begin,
                                               const TensorView& k, const TensorView& v,
                                               float scale, const KeepRule& rule, ThreadPool* pool);

// The list of a word that chooses by the last queries of q [rows, heads, head_dim] at q_begin among
// the keys k [kv_tokens, kv_heads, head_dim], which `layout` says who holds. CANCELLED once `loops`
// are.
absl::StatusOr<KeyListData> PickLocally(const ColumnSelector& selector, const Layout& layout,
                                        const TensorView& q, int64_t q_begin, const TensorView& k,
                                        float scale, const Loops& loops);

}  // namespace annulus
