// Vector pieces shared by the AVX512-BF16 kernels. Only for bf16_dot.cc and select/screen_bf16.cc.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention/cpu/kernels.h"

#define ANNULUS_BF16_TARGET   \
  _Pragma("GCC push_options") \
      _Pragma("GCC target(\"avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16\")")
#define ANNULUS_BF16_TARGET_END _Pragma("GCC pop_options")

ANNULUS_BF16_TARGET
namespace annulus::cpu::bf16 {

// 2^x for x ≤ 0, relative error below 2.6e-6 (minimax polynomial of degree 4 in the fraction),
// which is a thousandth of what rounding to bf16 then costs; exactly 0 below −125.
inline __m512 Exp2(__m512 x) {
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-125.0f), _CMP_GE_OQ);
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(1.3534168e-2f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.2011461e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4144276e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9300383e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000026f));
  return _mm512_maskz_scalef_ps(counts, p, x);  // p · 2^⌊x⌋
}

inline __m512 DotPairs(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// 16 pairs: the bf16 of `even` in the low halves, of `odd` in the high ones, to nearest even.
inline __m512i RoundToPairs(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

inline uint16_t ToBits(float exact) {  // of a value that is a bf16
  uint32_t bits;
  __builtin_memcpy(&bits, &exact, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

// KernelSet::takes. A key's subnormals are lost in as much as q is large, and so are the products
// that are subnormal: at most 2^-126 each time. What is lost of q itself depends on the key.
inline bool Takes(const TileShape& shape, const TileFloats& floats, const TileMemory& tile) {
  constexpr size_t kFloats = 16;  // of a vector, which holds 32 queries
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  const __m512i one = _mm512_set1_epi16(1);
  const __m512i subnormals = _mm512_set1_epi16(0x7f);  // 1 to 0x7f
  __m512i top = _mm512_setzero_si512();
  __mmask32 subnormal = 0;
  for (size_t at = 0; at < floats.q; at += kFloats) {
    const __mmask16 there = floats.q - at >= kFloats ? 0xffff : (1u << (floats.q - at)) - 1;
    const __m512i bits = _mm512_and_si512(_mm512_maskz_loadu_epi32(there, tile.q + at), magnitude);
    top = _mm512_max_epu16(top, bits);
    subnormal |= _mm512_cmplt_epu16_mask(_mm512_sub_epi16(bits, one), subnormals);
  }
  alignas(64) uint16_t tops[32];
  _mm512_store_si512(tops, top);
  const uint32_t largest = uint32_t{*std::max_element(tops, tops + 32)} << 16;
  float q;
  __builtin_memcpy(&q, &largest, sizeof q);
  const double lost = 0x1p-126 * shape.head_dim * (1.0 + double{q});
  return subnormal == 0 && lost * std::fabs(double{shape.scale}) < 0x1p-24;
}

inline double DotChains(int64_t steps, float* sink) {
  constexpr int kChains = 16;  // hide the latency of any core's units
  const __m512i ones = _mm512_set1_epi16(0x3f80);
  __m512 sums[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = DotPairs(sums[i], ones, ones);
  }
  __m512 sum = sums[0];
#pragma GCC unroll 16
  for (int i = 1; i < kChains; ++i) sum = _mm512_add_ps(sum, sums[i]);
  *sink = _mm512_cvtss_f32(sum);
  return 4.0 * 16 * kChains * static_cast<double>(steps);
}

}  // namespace annulus::cpu::bf16
ANNULUS_BF16_TARGET_END
