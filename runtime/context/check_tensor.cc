#include "runtime/context/check_tensor.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace annulus {
namespace {

// The least magnitude that rounds to infinity.
float LimitOf(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return 65520.0f;
    case DType::kBF16:
      return 0x1.FFp127f;
    case DType::kF32:
      break;
  }
  return std::numeric_limits<float>::infinity();
}

// The index of the first value of a row that is not below the limit, or `dim`. Rows are first
// checked as a whole, in a loop that the compiler can vectorise.
template <typename T, typename ToFloat>
int64_t FirstBad(const std::byte* row, int64_t dim, float limit, ToFloat to_float) {
  const T* values = reinterpret_cast<const T*>(row);
  bool good = true;
  for (int64_t i = 0; i < dim; ++i) good &= std::fabs(to_float(values[i])) < limit;
  if (good) return dim;
  int64_t i = 0;
  while (std::fabs(to_float(values[i])) < limit) ++i;
  return i;
}

int64_t FirstBad(const std::byte* row, DType dtype, int64_t dim, float limit) {
  switch (dtype) {
    case DType::kF32:
      return FirstBad<float>(row, dim, limit, [](float value) { return value; });
    case DType::kBF16:
      return FirstBad<uint16_t>(row, dim, limit, [](uint16_t bits) {
        return std::bit_cast<float>(uint32_t{bits} << 16);
      });
    case DType::kF16:
      break;
  }
  // Every finite f16 is finite in the other types too.
  return FirstBad<uint16_t>(row, dim, limit, [](uint16_t bits) {
    return (bits & 0x7c00) == 0x7c00 ? std::numeric_limits<float>::infinity() : 0.0f;
  });
}

}  // namespace

absl::Status CheckShape(absl::string_view name, const TensorView& tensor, int64_t heads,
                        int64_t dim) {
  if (!IsKnown(tensor.dtype)) {
    return absl::InvalidArgumentError(absl::StrCat(name, ".dtype: ", static_cast<int>(tensor.dtype),
                                                   "; expected f32, f16 or bf16"));
  }
  if (tensor.tokens < 1 || tensor.heads != heads || tensor.dim != dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape of ", name, ": [", tensor.tokens, ", ", tensor.heads, ", ", tensor.dim,
                     "]; expected [tokens ≥ 1, ", heads, ", ", dim, "]"));
  }
  return absl::OkStatus();
}

namespace {

// Of a tensor whose shape is good.
absl::Status CheckValues(absl::string_view name, const TensorView& tensor, DType stored) {
  if (tensor.data == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(name, ".data: null; expected its rows"));
  }
  const float limit = LimitOf(stored);
  // Where rounding makes nothing infinite, rows are checked by their bits, many at a time.
  const bool rounds_safely =
      tensor.dtype == stored || tensor.dtype == DType::kF16 || stored == DType::kF32;
  for (int64_t token = 0; token < tensor.tokens; ++token) {
    for (int64_t head = 0; head < tensor.heads; ++head) {
      if (rounds_safely && AllFinite(tensor.Row(token, head), tensor.dtype, tensor.dim)) continue;
      const int64_t bad = FirstBad(tensor.Row(token, head), tensor.dtype, tensor.dim, limit);
      if (bad == tensor.dim) continue;
      return absl::InvalidArgumentError(absl::StrCat(name, "[", token, ", ", head, ", ", bad,
                                                     "]: not finite; expected finite values (in ",
                                                     Name(stored), ")"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckTensor(absl::string_view name, const TensorView& tensor, int64_t heads,
                         int64_t dim, DType stored) {
  ANNULUS_RETURN_IF_ERROR(CheckShape(name, tensor, heads, dim));
  return CheckValues(name, tensor, stored);
}

absl::Status CheckKvShapes(const ContextSpec& spec, const TensorView& k, const TensorView& v) {
  ANNULUS_RETURN_IF_ERROR(CheckShape("k", k, spec.kv_heads, spec.head_dim));
  if (spec.v_is_k_prefix) {
    if (v.tokens == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "v.tokens: ", v.tokens, "; expected 0: V is K's first dims here, or there is none"));
  }
  ANNULUS_RETURN_IF_ERROR(CheckShape("v", v, spec.kv_heads, spec.v_head_dim));
  if (v.tokens == k.tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("v.tokens: ", v.tokens, "; expected k.tokens, ", k.tokens));
}

absl::Status CheckKv(const ContextSpec& spec, const TensorView& k, const TensorView& v) {
  ANNULUS_RETURN_IF_ERROR(CheckKvShapes(spec, k, v));
  ANNULUS_RETURN_IF_ERROR(CheckValues("k", k, spec.dtype));
  return spec.v_is_k_prefix ? absl::OkStatus() : CheckValues("v", v, spec.dtype);
}

absl::Status CheckBytes(absl::string_view name, const TensorView& tensor, int64_t bytes_max) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  auto bytes = static_cast<int64_t>(SizeOf(tensor.dtype));
  for (const int64_t extent :
       {int64_t{tensor.tokens}, int64_t{tensor.heads}, int64_t{tensor.dim}}) {
    const int64_t factor = std::max<int64_t>(0, extent);
    bytes = factor > 0 && bytes > kMost / factor ? kMost : bytes * factor;
  }
  if (bytes <= bytes_max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": [", tensor.tokens, ", ", tensor.heads, ", ", tensor.dim, "], ", bytes,
                   " bytes; expected at most ", bytes_max, " (request_bytes_max)"));
}

}  // namespace annulus
