// The instructions of sm_80 that the kernels are made of beside fragments.cuh: ldmatrix and
// mma.sync m16n8k16 with f32 accumulators (PTX ISA, "Matrix multiply-accumulate operation using
// mma instruction"). Shared memory holds rows of 16-byte chunks, XORed by the row so that the eight
// rows of an ldmatrix lie in different banks.
#pragma once

#include <cstdint>

#include "attention/cuda/fragments.cuh"

namespace annulus::cuda {

__device__ inline void LoadMatrices(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}
__device__ inline void LoadMatricesTransposed(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}

template <typename T>
struct Arithmetic;

template <>
struct Arithmetic<__nv_bfloat16> {
  static __device__ void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

template <>
struct Arithmetic<__half> {
  static __device__ void Multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// Byte offset of chunk `chunk` (16 bytes) of row `row`; `kChunks` chunks per row, a multiple of 8.
template <int kChunks>
__device__ inline uint32_t ChunkOffset(int row, int chunk) {
  return static_cast<uint32_t>((row * kChunks + (chunk ^ (row & 7))) * 16);
}

// From the address of a row's chunk c (0 or 1) to that of its chunk 2·d + c, if the row begins at a
// multiple of its length (AlignShared).
__device__ inline uint32_t NextChunks(uint32_t address, int d) {
  return address ^ static_cast<uint32_t>(32 * d);
}

}  // namespace annulus::cuda
