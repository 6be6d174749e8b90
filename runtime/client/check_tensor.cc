#include "runtime/client/check_tensor.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"

namespace annulus {

absl::Status Refuse(absl::string_view field, absl::string_view value, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, "; expected ", expected));
}

std::string ShapeOf(const TensorView& tensor) {
  return absl::StrCat(Name(tensor.dtype), " [", tensor.tokens, ", ", tensor.heads, ", ", tensor.dim,
                      "]");
}

absl::Status CheckMemory(absl::string_view field, const TensorView& tensor) {
  if (tensor.size() == 0) return absl::OkStatus();
  if (tensor.data == nullptr) return Refuse(field, "null", "its values");
  const std::pair<absl::string_view, int64_t> strides[] = {
      {"token_stride", tensor.tokens > 1 ? tensor.token_stride : tensor.dim},
      {"head_stride", tensor.heads > 1 ? tensor.head_stride : tensor.dim}};
  for (const auto& [name, stride] : strides) {
    if (stride >= tensor.dim) continue;
    return Refuse(absl::StrCat(field, ".", name), absl::StrCat(stride),
                  absl::StrCat("at least dim, ", tensor.dim));
  }
  return absl::OkStatus();
}

}  // namespace annulus
