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

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
// x − ⌊x⌋, and p·2^⌊x⌋ or 0 where x < least: one instruction each, which Highway has no names for.
template <class V>
HWY_INLINE V Fraction(V x) {
  return V{_mm512_reduce_ps(x.raw, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
}
template <class V>
HWY_INLINE V TimesPower(V p, V x, V least) {
  const __mmask16 counts = _mm512_cmp_ps_mask(x.raw, least.raw, _CMP_GE_OQ);
  return V{_mm512_maskz_scalef_ps(counts, p.raw, x.raw)};
}
#else
template <class V>
HWY_INLINE V Fraction(V x) {
  return hn::Sub(x, hn::Floor(x));
}
template <class V>
HWY_INLINE V TimesPower(V p, V x, V least) {
  const hn::DFromV<V> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto exponent = hn::ShiftLeft<23>(hn::ConvertTo(di, hn::Floor(hn::Max(x, least))));
  const V result = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenElseZero(hn::Ge(x, least), result);
}
#endif

// 2^x for x ≤ 0, relative error below 1.4e-7 (minimax polynomial of degree 5 in the fraction,
// 7.5e-8, and rounding); exactly 0 below −125, where nothing is left beside a 1.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  const V f = Fraction(x);
  V p = hn::Set(d, 1.8775766e-3f);
  p = hn::MulAdd(p, f, hn::Set(d, 8.9893402e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.5826318e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.4015362e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.9315307e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 9.9999993e-1f));
  return TimesPower(p, x, hn::Set(d, -125.0f));
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

template <class T>
HWY_INLINE float LoadOne(const T* p) {
  const hn::CappedTag<float, 1> d1;
  return hn::GetLane(LoadWide(d1, p));
}

}  // namespace annulus::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
