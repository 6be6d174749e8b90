#include "annulus/dtype.h"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/rng.h"
#include "tests/catch.h"

namespace annulus {
namespace {

// The 16-bit value nearest to `x`, ties to even bits, found by trying: finite, positive x.
uint16_t NearestByTrying(float x, float (*widen)(uint16_t), uint16_t infinity) {
  uint16_t low = 0;
  uint16_t high = infinity;
  while (high - low > 1) {
    const auto middle = static_cast<uint16_t>((low + high) / 2);
    (static_cast<double>(widen(middle)) <= x ? low : high) = middle;
  }
  if (high == infinity) {  // the next value would be one step beyond the largest
    const double step = static_cast<double>(widen(low)) - widen(static_cast<uint16_t>(low - 1));
    return x - static_cast<double>(widen(low)) < step / 2 ? low : infinity;
  }
  const double down = static_cast<double>(x) - widen(low);
  const double up = static_cast<double>(widen(high)) - x;
  if (down != up) return down < up ? low : high;
  return low % 2 == 0 ? low : high;
}

}  // namespace

TEST_CASE("every 16-bit value survives widening and rounding") {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float f16 = F16ToF32(half);
    if (std::isnan(f16)) {
      REQUIRE(std::isnan(F16ToF32(F32ToF16(f16))));
    } else {
      REQUIRE(F32ToF16(f16) == half);
    }
    const float bf16 = BF16ToF32(half);
    if (std::isnan(bf16)) {
      REQUIRE(std::isnan(BF16ToF32(F32ToBF16(bf16))));
    } else {
      REQUIRE(F32ToBF16(bf16) == half);
    }
  }
}

TEST_CASE("f16 holds the values the standard gives it") {
  CHECK(F16ToF32(0x3c00) == 1.0f);
  CHECK(F16ToF32(0xc000) == -2.0f);
  CHECK(F16ToF32(0x7bff) == 65504.0f);
  CHECK(F16ToF32(0x0001) == 0x1.0p-24f);
  CHECK(F16ToF32(0x0400) == 0x1.0p-14f);
  CHECK(F16ToF32(0x7c00) == std::numeric_limits<float>::infinity());
  CHECK(F32ToF16(65519.9f) == 0x7bff);
  CHECK(F32ToF16(65520.0f) == 0x7c00);
  CHECK(F32ToF16(-0.0f) == 0x8000);
  CHECK(F32ToF16(0x1.0p-25f) == 0);  // half of the least: to even
}

TEST_CASE("rounding goes to the nearest, ties to even") {
  const uint64_t seed = 11;
  CAPTURE(seed);
  Rng rng(seed);
  for (int i = 0; i < 100000; ++i) {
    // Any finite positive f32, with ties made likely by clearing low bits.
    auto bits = 0x1000u + static_cast<uint32_t>(rng.Below(0x7f7f0000u));
    if (i % 2 == 0) bits &= ~static_cast<uint32_t>(0xfff);
    const auto x = std::bit_cast<float>(bits);
    CAPTURE(x);
    REQUIRE(F32ToBF16(x) == NearestByTrying(x, BF16ToF32, 0x7f80));
    REQUIRE(F32ToBF16(-x) == (NearestByTrying(x, BF16ToF32, 0x7f80) | 0x8000));
    const float y = std::ldexp(x, -static_cast<int>(std::ilogb(x)) + static_cast<int>(i % 44) - 27);
    CAPTURE(y);
    REQUIRE(F32ToF16(y) == NearestByTrying(y, F16ToF32, 0x7c00));
    REQUIRE(F32ToF16(-y) == (NearestByTrying(y, F16ToF32, 0x7c00) | 0x8000));
  }
}

TEST_CASE("Convert agrees with the scalar conversions between all dtypes") {
  const int64_t n = 2500;  // more than one internal chunk
  Rng rng(5);
  std::vector<float> values(n);
  for (float& x : values) x = rng.Normal();
  const DType all[] = {DType::kF32, DType::kF16, DType::kBF16};
  for (DType from : all) {
    std::vector<std::byte> stored(n * SizeOf(from));
    Convert(values.data(), DType::kF32, stored.data(), from, n);
    std::vector<float> exact(n);
    Convert(stored.data(), from, exact.data(), DType::kF32, n);
    for (DType to : all) {
      std::vector<std::byte> once(n * SizeOf(to));
      std::vector<std::byte> twice(n * SizeOf(to));
      Convert(stored.data(), from, once.data(), to, n);
      Convert(exact.data(), DType::kF32, twice.data(), to, n);
      REQUIRE(once == twice);
    }
  }
  CHECK(F32ToF16(values[7]) != F32ToBF16(values[7]));
}

TEST_CASE("dtypes have names, and only those") {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    REQUIRE(*ParseDType(Name(dtype)) == dtype);
  }
  const absl::Status status = ParseDType("fp8\n").status();
  CHECK(status.code() == absl::StatusCode::kInvalidArgument);
  CHECK(status.message() == "dtype: 'fp8\\n'; expected one of f32, f16, bf16");
}

}  // namespace annulus
