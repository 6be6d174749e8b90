// Element types of stored tensors and their exact conversions. Storage is f32, f16 (IEEE binary16)
// or bf16; accumulation is always f32. Rounding is to nearest, ties to even; NaN stays NaN.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace annulus {

enum class DType : uint8_t { kF32, kF16, kBF16 };

constexpr size_t SizeOf(DType dtype) {
  return dtype == DType::kF32 ? 4 : 2;
}

// Whether it is one of them: a caller's may be any number.
constexpr bool IsKnown(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

// "f32", "f16", "bf16"; "unknown" for what is none of them, which ParseDType refuses.
absl::string_view Name(DType dtype);

// The inverse of Name. INVALID_ARGUMENT names the text and the three choices.
absl::StatusOr<DType> ParseDType(absl::string_view text);

float F16ToF32(uint16_t bits);
uint16_t F32ToF16(float value);
float BF16ToF32(uint16_t bits);
uint16_t F32ToBF16(float value);

// Converts `count` elements from `from` at `src` to `to` at `dst`. The arrays must not overlap.
void Convert(const void* src, DType from, void* dst, DType to, int64_t count);

// Whether `count` elements of `dtype` at `src` are all finite. `src` may have any alignment.
bool AllFinite(const void* src, DType dtype, int64_t count);

}  // namespace annulus
