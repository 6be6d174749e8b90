#include "attention/select/exp2.h"

#include <bit>
#include <numbers>

#include "attention/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/select/exp2.cc"
#include "hwy/foreach_target.h"  // includes this file once per instruction set

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace annulus::select::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ln(2)^k / k!: the Taylor series of 2^f, whose rest is below 2^-52 for |f| ≤ ½.
constexpr int kTerms = 13;
struct Series {
  constexpr Series() {
    double term = 1;
    for (int k = 0; k < kTerms; ++k) {
      at[k] = term;
      term = term * std::numbers::ln2 / (k + 1);
    }
  }
  double at[kTerms] = {};
};
constexpr Series kSeries;

// A product and a sum are rounded one by one: this file is compiled without contraction.
void Exp2Parts(const double* HWY_RESTRICT x, int64_t count, double* HWY_RESTRICT mantissas,
               int32_t* HWY_RESTRICT exponents) {
  const hn::ScalableTag<double> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  // Whose last bit is worth 1: what is added to it is rounded to the nearest whole number.
  const double magic = 0x1.8p52;
  const auto one = [&](auto tag, int64_t i) {
    const auto value = hn::LoadU(tag, x + i);
    const auto rounded = hn::Add(value, hn::Set(tag, magic));
    const auto f = hn::Sub(value, hn::Sub(rounded, hn::Set(tag, magic)));
    auto sum = hn::Set(tag, kSeries.at[kTerms - 1]);
    for (int k = kTerms - 2; k >= 0; --k) {
      sum = hn::Add(hn::Mul(sum, f), hn::Set(tag, kSeries.at[k]));
    }
    hn::StoreU(sum, tag, mantissas + i);
    return rounded;
  };
  int64_t i = 0;
  alignas(64) int64_t bits[hn::MaxLanes(d)];
  for (; i + lanes <= count; i += lanes) {
    hn::Store(hn::BitCast(di, one(d, i)), di, bits);
    for (int64_t l = 0; l < lanes; ++l) exponents[i + l] = static_cast<int32_t>(bits[l]);
  }
  const hn::CappedTag<double, 1> single;
  for (; i < count; ++i) {
    exponents[i] = static_cast<int32_t>(std::bit_cast<int64_t>(hn::GetLane(one(single, i))));
  }
}

}  // namespace annulus::select::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace annulus {
namespace select {
HWY_EXPORT(Exp2Parts);
}  // namespace select

void Exp2Parts(const double* x, int64_t count, double* mantissas, int32_t* exponents) {
  HWY_DYNAMIC_DISPATCH(select::Exp2Parts)(x, count, mantissas, exponents);
}

}  // namespace annulus
#endif
