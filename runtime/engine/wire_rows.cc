#include "runtime/engine/wire_rows.h"

#include <cstring>
#include <optional>

#include "base/check.h"
#include "base/status.h"

namespace annulus {

Buffer PackQueryRows(const Problem& problem, const Rows& rows, HeadRange heads, const Rows& q_rows,
                     const TensorView& q) {
  const size_t row_bytes = static_cast<size_t>(problem.head_dim) * SizeOf(problem.dtype);
  Buffer bytes(static_cast<size_t>(rows.count() * heads.count) * row_bytes);
  std::byte* to = bytes.data();
  for (int64_t i = 0; i < rows.blocks(); ++i) {
    const std::optional<int64_t> at = q_rows.Find(rows.block(i));
    ANNULUS_CHECK(at.has_value());
    for (int64_t r = 0; r < rows.rows(i); ++r) {
      for (int h = heads.first; h < heads.end(); ++h) {
        Convert(q.Row(q_rows.offset(*at) + r, h), q.dtype, to, problem.dtype, problem.head_dim);
        to += row_bytes;
      }
    }
  }
  return bytes;
}

absl::StatusOr<Buffer> PackQueryRowsIn(MemorySpace& space, const Problem& problem, const Rows& rows,
                                       HeadRange heads, const Rows& q_rows, const TensorView& q) {
  const size_t head_bytes = static_cast<size_t>(problem.head_dim) * SizeOf(problem.dtype);
  const size_t row_bytes = static_cast<size_t>(heads.count) * head_bytes;
  ANNULUS_ASSIGN_OR_RETURN(Buffer bytes,
                           space.Allocate(static_cast<size_t>(rows.count()) * row_bytes));
  std::vector<RowsCopy> copies;
  for (int64_t i = 0; i < rows.blocks(); ++i) {
    const std::optional<int64_t> at = q_rows.Find(rows.block(i));
    ANNULUS_CHECK(at.has_value());
    copies.push_back({.from = q.Row(q_rows.offset(*at), heads.first),
                      .to = bytes.data() + static_cast<size_t>(rows.offset(i)) * row_bytes,
                      .rows = rows.rows(i),
                      .row_bytes = row_bytes,
                      .from_stride_bytes = static_cast<size_t>(q.heads) * head_bytes,
                      .to_stride_bytes = row_bytes});
  }
  ANNULUS_RETURN_IF_ERROR(space.Copy(copies));
  return bytes;
}

Buffer Join(const std::vector<Buffer>& parts) {
  size_t total = 0;
  for (const Buffer& part : parts) total += part.size();
  Buffer joined(total);
  size_t at = 0;
  for (const Buffer& part : parts) {
    std::memcpy(joined.data() + at, part.data(), part.size());
    at += part.size();
  }
  return joined;
}

}  // namespace annulus
