#include "runtime/context/append_cut.h"

#include <cstring>

#include "base/check.h"
#include "runtime/context/layout.h"

namespace annulus {
namespace {

// Appends rows [first, first + count) of one head at `at`, converted; returns the end.
std::byte* PackRows(const TensorView& from, int64_t first, int64_t count, int64_t head, DType to,
                    std::byte* at) {
  for (int64_t row = first; row < first + count; ++row) {
    Convert(from.Row(row, head), from.dtype, at, to, from.dim);
    at += static_cast<size_t>(from.dim) * SizeOf(to);
  }
  return at;
}

}  // namespace

int64_t AppendBytes(const ContextSpec& spec, const Layout& layout, int rank, TokenRange tokens) {
  int64_t rows_owned = 0;
  ForEachOwnedBlock(layout, rank, tokens,
                    [&](int64_t, TokenRange rows) { rows_owned += rows.size(); });
  return rows_owned * CountOf(layout.KvHeads(rank)) * TokenBytes(spec);
}

Buffer PackAppend(const ContextSpec& spec, const Layout& layout, int rank, TokenRange tokens,
                  const TensorView& k, const TensorView& v) {
  Buffer packed(static_cast<size_t>(AppendBytes(spec, layout, rank, tokens)));
  std::byte* end = PackAppend(spec, layout, rank, tokens, k, v, packed.data());
  ANNULUS_CHECK(end == packed.data() + packed.size());
  return packed;
}

std::byte* PackAppend(const ContextSpec& spec, const Layout& layout, int rank, TokenRange tokens,
                      const TensorView& k, const TensorView& v, std::byte* to) {
  const HeadRanges& heads = layout.KvHeads(rank);
  ForEachOwnedBlock(layout, rank, tokens, [&](int64_t, TokenRange rows) {
    const int64_t first = rows.begin - tokens.begin;
    ForEachHead(heads, [&](int head) {
      to = PackRows(k, first, rows.size(), head, spec.dtype, to);
      if (!spec.v_is_k_prefix) to = PackRows(v, first, rows.size(), head, spec.dtype, to);
    });
  });
  return to;
}

void UnpackAppend(const ContextSpec& spec, const Layout& layout, int rank, TokenRange tokens,
                  const std::byte* packed, Tensor& k, Tensor& v) {
  const HeadRanges& heads = layout.KvHeads(rank);
  const auto unpack = [&](Tensor& to, int64_t first, int64_t count, int64_t head) {
    const size_t row_bytes = static_cast<size_t>(to.dim()) * SizeOf(to.dtype());
    for (int64_t row = first; row < first + count; ++row) {
      std::memcpy(to.data() + static_cast<size_t>(row * to.heads() + head) * row_bytes, packed,
                  row_bytes);
      packed += row_bytes;
    }
  };
  ForEachOwnedBlock(layout, rank, tokens, [&](int64_t, TokenRange rows) {
    const int64_t first = rows.begin - tokens.begin;
    ForEachHead(heads, [&](int head) {
      unpack(k, first, rows.size(), head);
      if (!spec.v_is_k_prefix) unpack(v, first, rows.size(), head);
    });
  });
}

}  // namespace annulus
