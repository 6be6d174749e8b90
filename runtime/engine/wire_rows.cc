#include "runtime/engine/wire_rows.h"

#include <cstring>
#include <optional>

#include "base/check.h"
#include "base/status.h"

namespace annulus {

std::byte* PackQueryRows(const TensorView& q, int64_t first, int64_t count, HeadRange heads,
                         DType dtype, std::byte* to) {
  // Heads that follow each other without gaps are converted as one.
  const int at_once = q.head_stride == q.dim ? heads.count : 1;
  for (int64_t row = first; row < first + count; ++row) {
    for (int head = heads.first; head < heads.end(); head += at_once) {
      Convert(q.Row(row, head), q.dtype, to, dtype, at_once * q.dim);
      to += static_cast<size_t>(at_once * q.dim) * SizeOf(dtype);
    }
  }
  return to;
}

std::byte* PackQueryRows(const Problem& problem, const Rows& rows, HeadRange heads,
                         const Rows& q_rows, const TensorView& q, std::byte* to) {
  for (int64_t i = 0; i < rows.blocks(); ++i) {
    const std::optional<int64_t> at = q_rows.Find(rows.block(i));
    ANNULUS_CHECK(at.has_value());
    to = PackQueryRows(q, q_rows.offset(*at), rows.rows(i), heads, problem.dtype, to);
  }
  return to;
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
