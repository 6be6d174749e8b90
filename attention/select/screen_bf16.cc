#include "attention/select/screen_bf16.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "attention/cpu/kernels.h"

#if defined(__x86_64__)
#include "attention/cpu/bf16_simd-inl.h"
#include "attention/cpu/fetch_line.h"

ANNULUS_BF16_TARGET
namespace annulus::select {
namespace {

constexpr size_t kLanes = 16;
constexpr size_t kSums = 16;  // that registers hold beside what they are made of
constexpr auto kTokens = static_cast<size_t>(kBlockTokens);

// A few dims of a token, beside each other in all lanes.
template <class Dims>
__m512i Spread(const std::byte* at) {
  Dims dims;
  std::memcpy(&dims, at, sizeof dims);
  return sizeof dims == 4 ? _mm512_set1_epi32(static_cast<int>(dims))
                          : _mm512_set1_epi64(static_cast<int64_t>(dims));
}

// The sums of two lanes each, in the lower half.
inline __m512 FoldTwo(__m512 sums) {
  const __m512i even = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutexvar_ps(even, _mm512_add_ps(sums, _mm512_movehdup_ps(sums)));
}

template <size_t kVectors, class Dims>
void LookVectors(const uint32_t* __restrict q, size_t padded, size_t dim,
                 const float* __restrict weights, bool first, const KeyRows& rows,
                 const KeyRows& next, size_t tokens, float* __restrict to) {
  constexpr size_t kAtOnce = kSums / kVectors;
  static_assert(kTokens % kAtOnce == 0);
  for (size_t t = 0; t < tokens; t += kAtOnce) {
    const std::byte *of_token[kAtOnce], *ahead[kAtOnce];
    for (size_t i = 0; i < kAtOnce; ++i) {
      of_token[i] = rows.Row(static_cast<int>(std::min(t + i, tokens - 1)));
      ahead[i] = next.Row(static_cast<int>(t + i));
    }
    __m512 sums[kAtOnce][kVectors];
#pragma GCC unroll 16
    for (auto& of : sums) {
#pragma GCC unroll 4
      for (auto& sum : of) sum = _mm512_setzero_ps();
    }
    const uint32_t* __restrict at = q;
    for (size_t c = 0; c < dim * sizeof(uint16_t); c += sizeof(Dims), at += padded) {
      if (first && c % cpu::kLineBytes == 0) {
#pragma GCC unroll 16
        for (size_t i = 0; i < kAtOnce; ++i) cpu::LineToL1(ahead[i] + c);
      }
      __m512i of[kVectors];
#pragma GCC unroll 4
      for (size_t v = 0; v < kVectors; ++v) of[v] = _mm512_loadu_si512(at + v * kLanes);
#pragma GCC unroll 16
      for (size_t i = 0; i < kAtOnce; ++i) {
        const __m512i dims = Spread<Dims>(of_token[i] + c);
#pragma GCC unroll 4
        for (size_t v = 0; v < kVectors; ++v) {
          sums[i][v] = cpu::bf16::DotPairs(sums[i][v], of[v], dims);
        }
      }
    }
    if constexpr (sizeof(Dims) == 8) {
#pragma GCC unroll 16
      for (auto& of : sums) of[0] = FoldTwo(of[0]);
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < kAtOnce; ++i) {
      if (weights == nullptr) {
#pragma GCC unroll 4
        for (size_t v = 0; v < kVectors; ++v) {
          _mm512_storeu_ps(to + (t + i) * padded + v * kLanes, sums[i][v]);
        }
        continue;
      }
      float* const lanes = to + (t + i) * kLanes;
      __m512 weighed = first ? _mm512_setzero_ps() : _mm512_loadu_ps(lanes);
#pragma GCC unroll 4
      for (size_t v = 0; v < kVectors; ++v) {
        weighed = _mm512_fmadd_ps(_mm512_loadu_ps(weights + v * kLanes),
                                  _mm512_max_ps(sums[i][v], _mm512_setzero_ps()), weighed);
      }
      _mm512_storeu_ps(lanes, weighed);
    }
  }
}

void Look(const uint32_t* q, size_t heads, size_t dim, const float* weights, const KeyRows& rows,
          const KeyRows& next, size_t tokens, float* scores) {
  const size_t padded = (heads + kLanes - 1) / kLanes * kLanes;
  for (size_t at = 0; at < padded;) {
    const auto look = [&](auto vectors, auto dims) {
      constexpr size_t kVectors = decltype(vectors)::value;
      LookVectors<kVectors, decltype(dims)>(
          q + at, padded, dim, weights == nullptr ? nullptr : weights + at, at == 0, rows, next,
          tokens, weights == nullptr ? scores + at : scores);
      at += kVectors * kLanes;
    };
    const size_t vectors = (padded - at) / kLanes;
    if (LanesOfHead(heads) == 2) {
      look(std::integral_constant<size_t, 1>(), uint64_t{});
    } else if (vectors >= 4) {
      look(std::integral_constant<size_t, 4>(), uint32_t{});
    } else if (vectors >= 2) {
      look(std::integral_constant<size_t, 2>(), uint32_t{});
    } else {
      look(std::integral_constant<size_t, 1>(), uint32_t{});
    }
  }
  if (weights == nullptr) return;
  for (size_t t = 0; t < tokens; ++t) {
    scores[t] = _mm512_reduce_add_ps(_mm512_loadu_ps(scores + t * kLanes));
  }
}

// Of some vectors of dims from `c` on, or of the first `there` of them. Machines read nothing ahead
// of masked loads.
template <size_t kVectors>
void LargestFrom(const KeyRows& rows, size_t c, size_t there, float* to) {
  constexpr size_t kHalves = 2 * kLanes;
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  const auto mask = static_cast<__mmask32>((uint64_t{1} << (there % kHalves)) - 1);
  __m512i tops[kVectors];
#pragma GCC unroll 4
  for (auto& top : tops) top = _mm512_setzero_si512();
  for (int t = 0; t < rows.count; ++t) {
    const std::byte* const row = rows.Row(t) + c * sizeof(uint16_t);
#pragma GCC unroll 4
    for (size_t v = 0; v < kVectors; ++v) {
      const std::byte* const at = row + v * sizeof(__m512i);
      const __m512i halves =
          mask == 0 ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi16(mask, at);
      tops[v] = _mm512_max_epu16(tops[v], _mm512_and_si512(halves, magnitude));
    }
  }
  uint16_t halves[kVectors * kHalves];
  std::memcpy(halves, tops, sizeof halves);
  for (size_t i = 0; i < there; ++i) to[c + i] = BF16ToF32(halves[i]);
}

void Largest(const KeyRows& rows, size_t dim, float* to) {
  size_t c = 0;
  for (; c + 128 <= dim; c += 128) LargestFrom<4>(rows, c, 128, to);
  for (; c < dim; c += 32) LargestFrom<1>(rows, c, std::min<size_t>(32, dim - c), to);
}

}  // namespace
}  // namespace annulus::select
ANNULUS_BF16_TARGET_END

namespace annulus::select {

bool LooksByPairs() {
  return cpu::Bf16DotKernels() != nullptr;
}

void LookPairs(const uint32_t* q, size_t heads, size_t dim, const float* weights,
               const KeyRows& rows, const KeyRows& next, size_t tokens, float* scores) {
  Look(q, heads, dim, weights, rows, next, tokens, scores);
}

void LargestOfPairs(const KeyRows& rows, size_t dim, float* largest) {
  Largest(rows, dim, largest);
}

}  // namespace annulus::select

#else

namespace annulus::select {
bool LooksByPairs() {
  return false;
}
void LookPairs(const uint32_t*, size_t, size_t, const float*, const KeyRows&, const KeyRows&,
               size_t, float*) {}
void LargestOfPairs(const KeyRows&, size_t, float*) {}
}  // namespace annulus::select

#endif
