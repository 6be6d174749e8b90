// What kernels on matrix units share: accumulators as threads hold them (mma.sync and wgmma alike),
// their masks, and how their rows end; 16-byte asynchronous copies.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "attention/cuda/device.cuh"

namespace annulus::cuda {

__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes, or writes zeros if not `there`.
__device__ inline void CopyAsync16(uint32_t to, const void* from, bool there) {
  const int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
               "r"(bytes));
}
__device__ inline void CopyAsync16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n" ::"r"(to), "l"(from));
}
__device__ inline void CommitCopies() {
  asm volatile("cp.async.commit_group;\n" ::);
}
// Until at most `kLeft` groups of copies are on their way.
template <int kLeft>
__device__ inline void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
}

inline constexpr int kSharedAlign = 1024;
__device__ inline uint32_t AlignShared(uint32_t address) {
  return (address + kSharedAlign - 1) / kSharedAlign * kSharedAlign;
}

__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// Max and sum over the four threads that hold a row of an accumulator.
__device__ inline float MaxOfRow(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float SumOfRow(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Two values rounded, as operands hold them.
template <typename T>
__device__ uint32_t Pack(float low, float high);
template <>
__device__ inline uint32_t Pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
template <>
__device__ inline uint32_t Pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// The scores of 16 rows × 8·kTiles keys, as one warp's accumulators hold them: c[n][0..1] are the
// keys 8n + 2·(lane % 4) + {0, 1} of row lane / 4, c[n][2..3] those of row lane / 4 + 8.
template <int kTiles>
using Scores = float[kTiles][4];

// Whether scores of this type can pass f32's range. Those of f16 cannot, with scales that the
// kernels on matrix units are given.
template <typename T>
inline constexpr bool kMayOverflow = std::is_same_v<T, __nv_bfloat16>;

// The score of a key that a row does not see. One below it, −inf, passed f32's range on the way: it
// leaves the row without an answer (attention/partial.h).
inline constexpr float kUnseen = -3.402823466e38f;

// Scores of keys that the row does not see become kUnseen. `low` and `high` are what the two rows
// see of the warp's keys, bit 0 being its first.
template <int kTiles>
__device__ inline void MaskScores(Scores<kTiles>& s, uint64_t low, uint64_t high, int lane) {
  low >>= 2 * (lane % 4);
  high >>= 2 * (lane % 4);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (!((low >> (8 * n)) & 1)) s[n][0] = kUnseen;
    if (!((low >> (8 * n)) & 2)) s[n][1] = kUnseen;
    if (!((high >> (8 * n)) & 1)) s[n][2] = kUnseen;
    if (!((high >> (8 * n)) & 2)) s[n][3] = kUnseen;
  }
}

// The weights of keys [16·i, 16·i + 16), rounded, as the left operand of a multiplication.
template <typename T, int kTiles>
__device__ inline void PackWeights(const Scores<kTiles>& s, int i, uint32_t (&to)[4]) {
  to[0] = Pack<T>(s[2 * i][0], s[2 * i][1]);
  to[1] = Pack<T>(s[2 * i][2], s[2 * i][3]);
  to[2] = Pack<T>(s[2 * i + 1][0], s[2 * i + 1][1]);
  to[3] = Pack<T>(s[2 * i + 1][2], s[2 * i + 1][3]);
}

// Of a row of `dim` columns: whether accumulator tile n holds `c`, the column that it would hold
// were the row as wide as the kernel's; and where that lies. kBoxed: as boxes of 64 columns bring
// rows, the last ones shifted so that they end where the row does, and then without what the box
// before has brought.
template <bool kBoxed>
__device__ inline bool FindColumn(int dim, int n, int* c) {
  if constexpr (!kBoxed) return *c < dim;
  const int box = n / 8 * 64;
  *c += min(box, dim - 64) - box;
  return *c >= box;
}

// Gives columns of one row to out, from `column` on. What is there is read some columns at a time,
// and the extent once: behind a store the compiler would have to read either anew.
template <bool kBoxed = false, int kOuts>
__device__ inline void GiveColumns(const Problem& problem, int64_t place, int column, int lane,
                                   const RowEnd& end, int i, const float (&out)[kOuts][4]) {
  constexpr int kAtOnce = kOuts <= 16 ? 8 : 4;  // more would not fit into registers
  static_assert(kOuts % kAtOnce == 0);
  const int dim = problem.v_head_dim;
  float* const to = problem.out + place * dim;
#pragma unroll
  for (int first = 0; first < kOuts; first += kAtOnce) {
    int c[kAtOnce];
    bool there[kAtOnce];
    float2 old[kAtOnce] = {};
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      c[n] = column + 8 * (first + n) + 2 * (lane % 4);
      there[n] = FindColumn<kBoxed>(dim, first + n, &c[n]);
      if (end.has_old && there[n]) old[n] = *reinterpret_cast<const float2*>(to + c[n]);
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      float2 value = {out[first + n][2 * i] * end.new_weight,
                      out[first + n][2 * i + 1] * end.new_weight};
      if (end.has_old) {
        value.x += old[n].x * end.old_weight;
        value.y += old[n].y * end.old_weight;
      }
      if (there[n]) *reinterpret_cast<float2*>(to + c[n]) = value;
    }
  }
}

// What is there of the rows `row` and `row + 8` of a half.
struct OldRows {
  int64_t place[2];  // < 0: the half has no such row
  float lse[2];
};

__device__ inline OldRows LookAtRows(const Problem& problem, const Half& half, int row) {
  const int rows = half.tokens * half.heads;
  OldRows old;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    old.place[i] = row + 8 * i < rows ? PlaceOf(problem, half, row + 8 * i) : -1;
    old.lse[i] = old.place[i] < 0 ? 0 : problem.lse[old.place[i]];
  }
  return old;
}

// Gives these rows to out and lse, as a whole warp. max is in units of log2, sum that of the whole
// row.
template <bool kBoxed = false, int kOuts>
__device__ inline void GiveRows(const Problem& problem, const OldRows& old, int lane,
                                const float (&max)[2], const float (&sum)[2],
                                const float (&out)[kOuts][4]) {
  const auto& place = old.place;
  RowEnd end[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) end[i] = EndOf(old.lse[i], max[i], sum[i]);
  __syncwarp();  // all have read lse
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (place[i] < 0 || !end[i].has_new) continue;
    if (lane % 4 == 0) problem.lse[place[i]] = end[i].lse;
    GiveColumns<kBoxed>(problem, place[i], 0, lane, end[i], i, out);
  }
}

// Keeps columns of one row in a segment's state, from `column` on.
template <bool kBoxed = false, int kOuts>
__device__ inline void KeepColumns(const Problem& problem, float* to, int column, int lane, int i,
                                   const float (&out)[kOuts][4]) {
  const int dim = problem.v_head_dim;  // once, as above
#pragma unroll
  for (int n = 0; n < kOuts; ++n) {
    int c = column + 8 * n + 2 * (lane % 4);
    if (FindColumn<kBoxed>(dim, n, &c)) {
      *reinterpret_cast<float2*>(to + c) = {out[n][2 * i], out[n][2 * i + 1]};
    }
  }
}

// Keeps the same rows as a segment's state; `base` is where they begin among the tile's `rows`.
template <bool kBoxed = false, int kOuts>
__device__ inline void KeepRows(const Problem& problem, const Half& half, float* state, int rows,
                                int base, int row, int lane, const float (&max)[2],
                                const float (&sum)[2], const float (&out)[kOuts][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + 8 * i;
    if (r >= half.tokens * half.heads) continue;
    if (lane % 4 == 0) {
      state[base + r] = max[i];
      state[rows + base + r] = sum[i];
    }
    KeepColumns<kBoxed>(problem, state + 2 * rows + int64_t{base + r} * problem.v_head_dim, 0, lane,
                        i, out);
  }
}

}  // namespace annulus::cuda
