#include "runtime/engine/wire_rows.h"

#include <cstring>

#include "base/check.h"

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

PartialView PartialIn(std::byte* bytes, int64_t rows, int64_t heads, int64_t v_head_dim) {
  float* out = reinterpret_cast<float*>(bytes);
  return {out, out + rows * heads * v_head_dim, rows, heads, v_head_dim};
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
