#include "annulus/dtype.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace annulus {
namespace {

constexpr int64_t kChunk = 1024;  // elements widened at once when neither side is f32

void ToF32(const void* src, DType from, float* dst, int64_t count) {
  const auto* bits = static_cast<const uint16_t*>(src);
  switch (from) {
    case DType::kF32:
      std::memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) dst[i] = F16ToF32(bits[i]);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) dst[i] = BF16ToF32(bits[i]);
      return;
  }
}

void FromF32(const float* src, void* dst, DType to, int64_t count) {
  auto* bits = static_cast<uint16_t*>(dst);
  switch (to) {
    case DType::kF32:
      std::memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) bits[i] = F32ToF16(src[i]);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) bits[i] = F32ToBF16(src[i]);
      return;
  }
}

}  // namespace

absl::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
  }
  return "unknown";
}

absl::StatusOr<DType> ParseDType(absl::string_view text) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (text == Name(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(absl::StrCat("dtype: '", absl::CHexEscape(text.substr(0, 40)),
                                                 "'; expected one of f32, f16, bf16"));
}

float F16ToF32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = bits & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity, or NaN with its payload
    return std::bit_cast<float>(sign | 0x7f800000 | ((magnitude & 0x3ff) << 13));
  }
  if (magnitude < 0x400) {  // zero and subnormals: a multiple of 2⁻²⁴, exact in f32
    const float value = static_cast<float>(magnitude) * 0x1.0p-24f;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + ((127 - 15) << 23)));
}

uint16_t F32ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;   // a quiet NaN
  if (magnitude >= 0x47800000) return sign | 0x7c00;  // ≥ 2¹⁶: infinity
  if (magnitude < 0x38800000) {                       // below 2⁻¹⁴: subnormal or zero
    // Adding 0.5 leaves the multiple of 2⁻²⁴ in the low bits, rounded to even by the addition.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000);
  }
  // A carry out of the mantissa goes into the exponent, up to infinity, as it should.
  const uint32_t odd = (magnitude >> 13) & 1;
  const uint32_t rounded = magnitude - ((127 - 15) << 23) + 0xfff + odd;
  return sign | static_cast<uint16_t>(rounded >> 13);
}

float BF16ToF32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

uint16_t F32ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void Convert(const void* src, DType from, void* dst, DType to, int64_t count) {
  if (count <= 0) return;
  if (from == to) {
    std::memcpy(dst, src, static_cast<size_t>(count) * SizeOf(from));
  } else if (to == DType::kF32) {
    ToF32(src, from, static_cast<float*>(dst), count);
  } else if (from == DType::kF32) {
    FromF32(static_cast<const float*>(src), dst, to, count);
  } else {
    float chunk[kChunk];
    const auto* in = static_cast<const std::byte*>(src);
    auto* out = static_cast<std::byte*>(dst);
    for (int64_t i = 0; i < count; i += kChunk) {
      const int64_t n = count - i < kChunk ? count - i : kChunk;
      ToF32(in + i * 2, from, chunk, n);
      FromF32(chunk, out + i * 2, to, n);
    }
  }
}

bool AllFinite(const void* src, DType dtype, int64_t count) {
  const auto* bytes = static_cast<const std::byte*>(src);
  // All bits of the exponent are set in what is not finite.
  const auto none_full = [&]<typename Bits>(Bits exponent) {
    Bits any_full = 0;
    for (int64_t i = 0; i < count; ++i) {
      Bits bits;
      std::memcpy(&bits, bytes + i * static_cast<int64_t>(sizeof bits), sizeof bits);
      any_full |= static_cast<Bits>((bits & exponent) == exponent);
    }
    return any_full == 0;
  };
  switch (dtype) {
    case DType::kF32:
      return none_full(uint32_t{0x7f800000});
    case DType::kF16:
      return none_full(uint16_t{0x7c00});
    case DType::kBF16:
      break;
  }
  return none_full(uint16_t{0x7f80});
}

}  // namespace annulus
