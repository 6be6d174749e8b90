#include "runtime/coordinator/calls/check_header.h"

#include "attention/memory_space.h"
#include "base/status.h"
#include "runtime/context/check_tensor.h"

namespace annulus {

absl::StatusOr<int64_t> CheckHeader(const ContextSpec& spec, const AppendRequest& header) {
  ANNULUS_RETURN_IF_ERROR(CheckKvShapes(spec, header.k, header.v));
  return 0;
}

absl::StatusOr<int64_t> CheckHeader(const ContextSpec& spec, const AttendRequest& header) {
  ANNULUS_RETURN_IF_ERROR(CheckShape("q", header.q, spec.heads, spec.head_dim));
  return static_cast<int64_t>(PartialBytes(header.q.tokens, spec.heads, spec.v_head_dim));
}

}  // namespace annulus
