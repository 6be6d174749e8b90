// Query rows and partials as bytes between ranks.
//   queries   [rows, heads, head_dim] of the problem's dtype
//   partial   out [rows, heads, v_head_dim] f32, then lse [rows, heads] f32 (natural log)
// Rows ascend; a transfer's heads are those it names. Thread-safe.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "annulus/buffer.h"
#include "annulus/tensor.h"
#include "attention/memory_space.h"
#include "runtime/engine/rows.h"
#include "sharding/plan.h"

namespace annulus {

// Packs these rows of these heads of `q`, which lies in host memory, as `dtype` at `to`; returns
// the end.
std::byte* PackQueryRows(const TensorView& q, int64_t first, int64_t count, HeadRange heads,
                         DType dtype, std::byte* to);

// The same of rows × heads, in the problem's dtype; `q` holds `q_rows` (a superset) with all heads.
std::byte* PackQueryRows(const Problem& problem, const Rows& rows, HeadRange heads,
                         const Rows& q_rows, const TensorView& q, std::byte* to);

// The same of queries that lie in `space`, contiguous and of the problem's dtype; packed there.
absl::StatusOr<Buffer> PackQueryRowsIn(MemorySpace& space, const Problem& problem, const Rows& rows,
                                       HeadRange heads, const Rows& q_rows, const TensorView& q);

Buffer Join(const std::vector<Buffer>& parts);

}  // namespace annulus
