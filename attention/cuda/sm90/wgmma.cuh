// Matrix products of a warpgroup (PTX ISA, "wgmma"): m64nNk16, 16-bit operands, f32 accumulators.
// The accumulator d[n][4] of a thread are rows lane / 4 (d[n][0..1]) and lane / 4 + 8 (d[n][2..3])
// of its warp's 16 rows, columns 8n + 2·(lane % 4) + {0, 1}: as mma.sync has them.
//
// Operands in shared memory are tiles of 64-column boxes, as CopyBox leaves them: rows of 128
// bytes, swizzled, boxes one after the other.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace annulus::cuda::sm90 {

// Before the first product after registers of accumulators or operands were written.
__device__ inline void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most `kLeft` groups of the products that were committed are not done.
template <int kLeft = 0>
__device__ inline void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// Tells the compiler that products write (accumulators) or read (weights) these registers up to
// here: asm statements of products end before the products do.
template <int kTiles>
__device__ inline void Pin(float (&d)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
  }
}
template <int kSteps>
__device__ inline void Pin(uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
  }
}

// What describes an operand in shared memory: its address, and how far the boxes of 64 columns lie
// apart where columns are the products' N (values); 8 rows are 1,024 bytes.
__device__ inline uint64_t Describe(uint32_t address, int box_stride) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>(box_stride >> 4) << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}
// What is added to a description for so many bytes.
__device__ constexpr uint64_t Bytes(int bytes) {
  return static_cast<uint64_t>(bytes >> 4);
}

// The operands of the instructions, which must be named one by one.
#define ANNULUS_D1(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define ANNULUS_D4(d, n) \
  ANNULUS_D1(d, n), ANNULUS_D1(d, n + 1), ANNULUS_D1(d, n + 2), ANNULUS_D1(d, n + 3)
#define ANNULUS_D8(d, n) ANNULUS_D4(d, n), ANNULUS_D4(d, n + 4)
#define ANNULUS_D16(d, n) ANNULUS_D8(d, n), ANNULUS_D8(d, n + 8)
#define ANNULUS_D32(d, n) ANNULUS_D16(d, n), ANNULUS_D16(d, n + 16)
#define ANNULUS_REGISTERS_32                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ANNULUS_REGISTERS_64                                                         \
  ANNULUS_REGISTERS_32                                                               \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ANNULUS_REGISTERS_128                                                                    \
  ANNULUS_REGISTERS_64                                                                           \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"             \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"             \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"
// `next`: the operands after the accumulators, by number.
#define ANNULUS_PRODUCT_SS(shape, type, d, a, b, operands, n0, n1, n2, n3)                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " n2                                       \
               ", 0;\n"                                                                     \
               "wgmma.mma_async.sync.aligned." shape "k16.f32." type "." type " {" operands \
               "}, " n0 ", " n1 ", p, 1, 1, 0, " n3 ";\n}"                                  \
               : d                                                                          \
               : "l"(a), "l"(b), "n"(kAdd), "n"(kTransposed))
#define ANNULUS_PRODUCT_RS(shape, type, d, a, b, operands, n0, n1, n2, n3, n4, n5, n6)      \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " n5                                       \
               ", 0;\n"                                                                     \
               "wgmma.mma_async.sync.aligned." shape "k16.f32." type "." type " {" operands \
               "}, {" n0 ", " n1 ", " n2 ", " n3 "}, " n4 ", p, 1, 1, " n6 ";\n}"           \
               : d                                                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAdd), "n"(kTransposed))

// d = a·b, or d += a·b with kAdd: a of 64 rows × 16, b of 16 × 8·kTiles. kTransposed: b's rows in
// memory are its 16 (values), else its 8·kTiles (keys).
template <typename T, bool kAdd, bool kTransposed, int kTiles>
__device__ inline void Product(float (&d)[kTiles][4], uint64_t a, uint64_t b) {
  static_assert(kTiles == 8 || kTiles == 16 || kTiles == 32);
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (kTiles == 8 && kBf16) {
    ANNULUS_PRODUCT_SS("m64n64", "bf16", ANNULUS_D8(d, 0), a, b, ANNULUS_REGISTERS_32, "%32", "%33",
                       "%34", "%35");
  } else if constexpr (kTiles == 8) {
    ANNULUS_PRODUCT_SS("m64n64", "f16", ANNULUS_D8(d, 0), a, b, ANNULUS_REGISTERS_32, "%32", "%33",
                       "%34", "%35");
  } else if constexpr (kTiles == 16 && kBf16) {
    ANNULUS_PRODUCT_SS("m64n128", "bf16", ANNULUS_D16(d, 0), a, b, ANNULUS_REGISTERS_64, "%64",
                       "%65", "%66", "%67");
  } else if constexpr (kTiles == 16) {
    ANNULUS_PRODUCT_SS("m64n128", "f16", ANNULUS_D16(d, 0), a, b, ANNULUS_REGISTERS_64, "%64",
                       "%65", "%66", "%67");
  } else if constexpr (kBf16) {
    ANNULUS_PRODUCT_SS("m64n256", "bf16", ANNULUS_D32(d, 0), a, b, ANNULUS_REGISTERS_128, "%128",
                       "%129", "%130", "%131");
  } else {
    ANNULUS_PRODUCT_SS("m64n256", "f16", ANNULUS_D32(d, 0), a, b, ANNULUS_REGISTERS_128, "%128",
                       "%129", "%130", "%131");
  }
}

// The same with a in registers, as PackWeights leaves them.
template <typename T, bool kAdd, bool kTransposed, int kTiles>
__device__ inline void Product(float (&d)[kTiles][4], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kTiles == 8 || kTiles == 16 || kTiles == 32);
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
  if constexpr (kTiles == 8 && kBf16) {
    ANNULUS_PRODUCT_RS("m64n64", "bf16", ANNULUS_D8(d, 0), a, b, ANNULUS_REGISTERS_32, "%32", "%33",
                       "%34", "%35", "%36", "%37", "%38");
  } else if constexpr (kTiles == 8) {
    ANNULUS_PRODUCT_RS("m64n64", "f16", ANNULUS_D8(d, 0), a, b, ANNULUS_REGISTERS_32, "%32", "%33",
                       "%34", "%35", "%36", "%37", "%38");
  } else if constexpr (kTiles == 16 && kBf16) {
    ANNULUS_PRODUCT_RS("m64n128", "bf16", ANNULUS_D16(d, 0), a, b, ANNULUS_REGISTERS_64, "%64",
                       "%65", "%66", "%67", "%68", "%69", "%70");
  } else if constexpr (kTiles == 16) {
    ANNULUS_PRODUCT_RS("m64n128", "f16", ANNULUS_D16(d, 0), a, b, ANNULUS_REGISTERS_64, "%64",
                       "%65", "%66", "%67", "%68", "%69", "%70");
  } else if constexpr (kBf16) {
    ANNULUS_PRODUCT_RS("m64n256", "bf16", ANNULUS_D32(d, 0), a, b, ANNULUS_REGISTERS_128, "%128",
                       "%129", "%130", "%131", "%132", "%133", "%134");
  } else {
    ANNULUS_PRODUCT_RS("m64n256", "f16", ANNULUS_D32(d, 0), a, b, ANNULUS_REGISTERS_128, "%128",
                       "%129", "%130", "%131", "%132", "%133", "%134");
  }
}

#undef ANNULUS_PRODUCT_RS
#undef ANNULUS_PRODUCT_SS
#undef ANNULUS_REGISTERS_128
#undef ANNULUS_REGISTERS_64
#undef ANNULUS_REGISTERS_32
#undef ANNULUS_D32
#undef ANNULUS_D16
#undef ANNULUS_D8
#undef ANNULUS_D4
#undef ANNULUS_D1

// s = queries · keys: 64 rows by the 64 keys of a block, all kDim columns.
template <typename T, int kDim>
__device__ inline void ScoreBlock(float (&s)[8][4], uint64_t queries, uint64_t keys) {
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const uint64_t at = Bytes(i / 4 * 64 * 128 + i % 4 * 32);
    if (i == 0) {
      Product<T, false, false>(s, queries + at, keys + at);
    } else {
      Product<T, true, false>(s, queries + at, keys + at);
    }
  }
}

// out += weights · values: 64 rows by 8·kTiles columns, over the 64 keys of a block.
template <typename T, int kTiles>
__device__ inline void AddBlock(float (&out)[kTiles][4], const uint32_t (&weights)[4][4],
                                uint64_t values) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Product<T, true, true>(out, weights[i], values + Bytes(i * 16 * 128));
  }
}

// The same with the weights in shared memory, one box.
template <typename T, int kTiles>
__device__ inline void AddBlock(float (&out)[kTiles][4], uint64_t weights, uint64_t values) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Product<T, true, true>(out, weights + Bytes(i * 32), values + Bytes(i * 16 * 128));
  }
}

}  // namespace annulus::cuda::sm90
