// MemorySpace: the memory that KV, queries and partials lie in while they are worked on, and what
// is done to them there beside attention: copies, merges, the ends of rows. That of the host, or
// that of a GPU (attention/cuda). A backend names the one it computes in best. A call returns when
// it is done, unless it says otherwise. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/buffer.h"
#include "attention/partial.h"
#include "base/memory_kind.h"

namespace annulus {

// Rows that are copied; strides between consecutive rows.
struct RowsCopy {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  int64_t rows = 0;
  size_t row_bytes = 0;
  size_t from_stride_bytes = 0;
  size_t to_stride_bytes = 0;
};

// into ⊕= from, row by row, for `heads` heads: those that each of the two begins with. Their own
// heads say how far their rows are apart. With `forget`, what was read becomes the identity.
struct RowsMerge {
  PartialView into;
  PartialView from;
  int64_t heads = 0;
  bool forget = false;
};

class MemorySpace {
 public:
  virtual ~MemorySpace() = default;

  virtual MemoryKind kind() const = 0;

  // 64-byte aligned; may outlive the space. RESOURCE_EXHAUSTED where there is no room for it. What
  // is given back is kept for the next one of about its size, where allocating takes long.
  virtual absl::StatusOr<Buffer> Allocate(size_t size_bytes) = 0;  // NOT zeroed
  virtual absl::StatusOr<Buffer> AllocateZeroed(size_t size_bytes) = 0;

  // Between memory of the host and of this space.
  virtual absl::Status CopyIn(const void* from, std::byte* to, size_t size_bytes) = 0;
  virtual absl::Status CopyOut(const std::byte* from, void* to, size_t size_bytes) = 0;

  // Rows in memory of the host to this space; they are read when it returns. It may return before
  // it is done: what comes later through this space, and what its backend attends later, finds it
  // done.
  virtual absl::Status CopyRowsIn(absl::Span<const RowsCopy> copies) = 0;

  // Within this space; what is copied does not overlap.
  virtual absl::Status Copy(absl::Span<const RowsCopy> copies) = 0;
  // May return before it is done; what comes later through this space finds it done.
  virtual absl::Status Zero(std::byte* at, size_t size_bytes) = 0;

  // As the functions of attention/partial.h. No two merges have a row of `into` in common.
  virtual absl::Status SetIdentity(PartialView partial) = 0;
  virtual absl::Status Merge(absl::Span<const RowsMerge> merges) = 0;
  virtual absl::StatusOr<std::optional<Overflow>> EndRows(PartialView partial) = 0;
};

// That of this process.
MemorySpace& HostMemory();

// What lies in host memory, moved to a space; no copy where that is the host's.
absl::StatusOr<Buffer> MovedTo(MemorySpace& space, Buffer host);

// A partial that lies in a space, and what it lies in.
struct PartialBuffer {
  Buffer bytes;  // out, then lse
  PartialView view;
};

// Views bytes as a partial: out [rows, heads, v_head_dim] f32, then lse [rows, heads] f32, natural
// log. They must be 4-byte aligned and outlive the view.
PartialView PartialIn(std::byte* bytes, int64_t rows, int64_t heads, int64_t v_head_dim);
size_t PartialBytes(int64_t rows, int64_t heads, int64_t v_head_dim);

// The identity.
absl::StatusOr<PartialBuffer> MakePartial(MemorySpace& space, int64_t rows, int64_t heads,
                                          int64_t v_head_dim);

// A copy in host memory.
absl::StatusOr<Partial> ToHost(MemorySpace& space, const PartialBuffer& partial);

}  // namespace annulus
