// Compress over keys in this process, held by one rank: the rows that queries vote for, as the
// service keeps them. Thread-safe function of values.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "annulus/key_list.h"
#include "annulus/tensor.h"
#include "annulus/types.h"
#include "base/thread_pool.h"

namespace annulus {

struct CompressedRows {
  Tensor k;               // [keys kept, kv_heads, head_dim]
  Tensor v;               // [keys kept, kv_heads, v_head_dim]
  KeyListData kept = {};  // their positions, by KV head
};

// q [rows, heads, head_dim] at q_begin votes for the keys of k [tokens, kv_heads, head_dim], which
// v [tokens, kv_heads, v_head_dim] belongs to; all of one dtype in host memory. `pool` as
// Backend::pool. INVALID_ARGUMENT as ColumnPass.
absl::StatusOr<CompressedRows> CompressLocally(const TensorView& q, int64_t q_begin,
                                               const TensorView& k, const TensorView& v,
                                               float scale, const KeepRule& rule, ThreadPool* pool);

}  // namespace annulus
