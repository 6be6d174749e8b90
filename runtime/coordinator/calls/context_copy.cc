#include "runtime/coordinator/calls/context_copy.h"

#include "absl/strings/str_cat.h"
#include "runtime/context/append_cut.h"
#include "runtime/context/layout.h"

namespace annulus {

ContextCopy::ContextCopy(const action::MoveRead& read)
    : read_(read), spec_(read.to->SpecOf(read.layer)) {
  const ContextSpec& spec = spec_;
  k_ = Tensor(spec.dtype, read.chunk.size(), spec.kv_heads, spec.head_dim);
  if (!spec.v_is_k_prefix) {
    v_ = Tensor(spec.dtype, read.chunk.size(), spec.kv_heads, spec.v_head_dim);
  }
}

absl::Status ContextCopy::Take(int rank, const Buffer& rows) {
  const Layout layout = read_.from->layout(read_.layer, read_.chunk.end);
  const int64_t bytes = AppendBytes(spec_, layout, rank, read_.chunk);
  if (static_cast<int64_t>(rows.size()) != bytes) {
    return absl::DataLossError(
        absl::StrCat("rows of a context that moves: ", rows.size(), " bytes; expected ", bytes));
  }
  UnpackAppend(spec_, layout, rank, read_.chunk, rows.data(), k_, v_);
  return absl::OkStatus();
}

Buffer ContextCopy::Pack(int rank) const {
  const Layout layout = read_.to->layout(read_.layer, read_.chunk.end);
  return PackAppend(spec_, layout, rank, read_.chunk, k_, v_);
}

}  // namespace annulus
