// Selections over ranks in this process, one after the other: what each rank answers is merged as a
// caller of the service merges it. Thread-safe function of values.
#pragma once

#include <atomic>
#include <vector>

#include "absl/status/statusor.h"
#include "annulus/tensor.h"
#include "attention/pattern.h"
#include "base/thread_pool.h"
#include "sharding/layout.h"

namespace annulus {

// The lists of those words of `pattern` that choose keys by data and are none of `given`.
// q [rows, heads, head_dim] at q_begin and k [kv_tokens, kv_heads, head_dim], of one dtype, lie in
// host memory; `layout` says which rank holds what of k; `pool` as Backend::pool. Words that look
// at the weights of a softmax take scores times `scale`, 0 for 1/√head_dim. INVALID_ARGUMENT as
// Selection::Check and ColumnPass::CheckWeights, CANCELLED once *cancel is true.
absl::StatusOr<std::vector<NamedList>> SelectLocally(const Pattern& pattern,
                                                     absl::Span<const NamedList> given,
                                                     const Layout& layout, const TensorView& q,
                                                     int64_t q_begin, const TensorView& k,
                                                     ThreadPool* pool, float scale = 0,
                                                     const std::atomic<bool>* cancel = nullptr);

}  // namespace annulus
