#include "runtime/coordinator/calls/context_copy.h"

#include "absl/strings/str_cat.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"

namespace annulus {

ContextCopy::ContextCopy(const action::MoveRead& read)
    : read_(read),
      k_(read.to->spec.dtype, read.chunk.size(), read.to->spec.kv_heads, read.to->spec.head_dim) {
  const ContextSpec& spec = read.to->spec;
  if (!spec.v_is_k_prefix) {
    v_ = Tensor(spec.dtype, read.chunk.size(), spec.kv_heads, spec.v_head_dim);
  }
}

absl::Status ContextCopy::Take(int rank, const Buffer& rows) {
  const ShardMap& from = *read_.from;
  const Layout layout = from.layout(read_.chunk.end);
  const int64_t bytes = AppendBytes(from.spec, layout, rank, read_.chunk);
  if (static_cast<int64_t>(rows.size()) != bytes) {
    return absl::DataLossError(
        absl::StrCat("it sent ", rows.size(), " bytes of a context that moves, expected ", bytes));
  }
  UnpackAppend(from.spec, layout, rank, read_.chunk, rows.data(), k_, v_);
  return absl::OkStatus();
}

Buffer ContextCopy::Pack(int rank) const {
  const ShardMap& to = *read_.to;
  return PackAppend(to.spec, to.layout(read_.chunk.end), rank, read_.chunk, k_, v_);
}

}  // namespace annulus
