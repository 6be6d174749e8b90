#include "attention/memory_space.h"

#include <string.h>

#include <cstring>
#include <utility>

#include "base/memory.h"
#include "base/status.h"

namespace annulus {
namespace {

PartialView OneRow(const PartialView& view, int64_t row, int64_t heads) {
  const int64_t at = row * view.heads;
  return {view.out + at * view.v_head_dim, view.lse + at, 1, heads, view.v_head_dim};
}

class Host final : public MemorySpace {
 public:
  MemoryKind kind() const override { return MemoryKind::kHost; }

  absl::StatusOr<Buffer> Allocate(size_t size_bytes) override { return Buffer(size_bytes); }
  absl::StatusOr<Buffer> AllocateZeroed(size_t size_bytes) override {
    Memory memory = AllocateZeroedMemory(size_bytes);
    std::shared_ptr<std::byte> shared = std::move(memory);
    return Buffer(std::move(shared), size_bytes);
  }

  absl::Status CopyIn(const void* from, std::byte* to, size_t size_bytes) override {
    if (size_bytes != 0) std::memcpy(to, from, size_bytes);
    return absl::OkStatus();
  }
  absl::Status CopyOut(const std::byte* from, void* to, size_t size_bytes) override {
    if (size_bytes != 0) std::memcpy(to, from, size_bytes);
    return absl::OkStatus();
  }

  absl::Status CopyRowsIn(absl::Span<const RowsCopy> copies) override { return Copy(copies); }

  absl::Status Copy(absl::Span<const RowsCopy> copies) override {
    for (const RowsCopy& copy : copies) {
      const auto rows = static_cast<size_t>(copy.rows);
      if (copy.from_stride_bytes == copy.row_bytes && copy.to_stride_bytes == copy.row_bytes) {
        std::memcpy(copy.to, copy.from, rows * copy.row_bytes);
        continue;
      }
      for (size_t r = 0; r < rows; ++r) {
        std::memcpy(copy.to + r * copy.to_stride_bytes, copy.from + r * copy.from_stride_bytes,
                    copy.row_bytes);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Zero(std::byte* at, size_t size_bytes) override {
    // A compiler may leave out a memset of memory that is freed next.
    explicit_bzero(at, size_bytes);
    return absl::OkStatus();
  }

  absl::Status SetIdentity(PartialView partial) override {
    annulus::SetIdentity(partial);
    return absl::OkStatus();
  }

  absl::Status Merge(absl::Span<const RowsMerge> merges) override {
    for (const RowsMerge& merge : merges) {
      if (merge.into.heads == merge.heads && merge.from.heads == merge.heads) {
        annulus::Merge(merge.into, merge.from);
        if (merge.forget) annulus::SetIdentity(merge.from);
        continue;
      }
      for (int64_t row = 0; row < merge.from.rows; ++row) {
        const PartialView from = OneRow(merge.from, row, merge.heads);
        annulus::Merge(OneRow(merge.into, row, merge.heads), from);
        if (merge.forget) annulus::SetIdentity(from);
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::optional<Overflow>> EndRows(PartialView partial) override {
    return annulus::EndRows(partial);
  }
};

}  // namespace

MemorySpace& HostMemory() {
  static Host& host = *new Host;
  return host;
}

absl::StatusOr<Buffer> MovedTo(MemorySpace& space, Buffer host) {
  if (space.kind() == MemoryKind::kHost) return host;
  ANNULUS_ASSIGN_OR_RETURN(Buffer moved, space.Allocate(host.size()));
  ANNULUS_RETURN_IF_ERROR(space.CopyIn(host.data(), moved.data(), host.size()));
  return moved;
}

PartialView PartialIn(std::byte* bytes, int64_t rows, int64_t heads, int64_t v_head_dim) {
  float* out = reinterpret_cast<float*>(bytes);
  return {out, out + rows * heads * v_head_dim, rows, heads, v_head_dim};
}

size_t PartialBytes(int64_t rows, int64_t heads, int64_t v_head_dim) {
  return static_cast<size_t>(rows * heads * (v_head_dim + 1)) * sizeof(float);
}

absl::StatusOr<PartialBuffer> MakePartial(MemorySpace& space, int64_t rows, int64_t heads,
                                          int64_t v_head_dim) {
  PartialBuffer partial;
  ANNULUS_ASSIGN_OR_RETURN(partial.bytes, space.Allocate(PartialBytes(rows, heads, v_head_dim)));
  partial.view = PartialIn(partial.bytes.data(), rows, heads, v_head_dim);
  ANNULUS_RETURN_IF_ERROR(space.SetIdentity(partial.view));
  return partial;
}

absl::StatusOr<Partial> ToHost(MemorySpace& space, const PartialBuffer& partial) {
  const PartialView from = partial.view;
  const auto rows = static_cast<size_t>(from.rows * from.heads);
  Partial host(from.rows, from.heads, from.v_head_dim);
  const PartialView to = host.view();
  ANNULUS_RETURN_IF_ERROR(
      space.CopyOut(reinterpret_cast<const std::byte*>(from.out), to.out,
                    rows * static_cast<size_t>(from.v_head_dim) * sizeof(float)));
  ANNULUS_RETURN_IF_ERROR(
      space.CopyOut(reinterpret_cast<const std::byte*>(from.lse), to.lse, rows * sizeof(float)));
  return host;
}

}  // namespace annulus
