// Vector pieces shared by the kernels: exp2, widening loads. Included once per instruction set,
// by Highway's foreach_target; see kernels.cc.
#if defined(ANNULUS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ANNULUS_CPU_SIMD_INL_H_
#undef ANNULUS_CPU_SIMD_INL_H_
#else
#define ANNULUS_CPU_SIMD_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace annulus::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 2^x for x ≤ 0, relative error below 1.3e-7 (polynomial of degree 6, interpolated at Chebyshev
// nodes, 2.6e-9, and rounding); exactly 0 below −125, where nothing is left beside a 1.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V floor = hn::Set(d, -125.0f);
  const V clamped = hn::Max(x, floor);
  const V whole = hn::Round(clamped);
  const V f = hn::Sub(clamped, whole);
  V p = hn::Set(d, 1.546144469646172e-4f);
  p = hn::MulAdd(p, f, hn::Set(d, 1.3400428177419153e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 9.61805667852609e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.550327226670944e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.4022650922288827e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.931472067028321e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::ConvertTo(di, whole));
  const V result = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenElseZero(hn::Ge(x, floor), result);
}

template <class D>
HWY_INLINE hn::Vec<D> LoadWide(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> LoadWide(D d, const hwy::bfloat16_t* p) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::bfloat16_t, D>(), p));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadWide(D d, const hwy::float16_t* p) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<hwy::float16_t, D>(), p));
}

}  // namespace annulus::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
