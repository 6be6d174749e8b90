// Copies by the copy engine, and which places they read.
#pragma once

#include <cstdint>

#include "attention/cuda/sm90/tensor_map.h"

namespace annulus::cuda::sm90 {

inline constexpr int kBoxRows = 64;
inline constexpr int kBoxBytes = 64 * 128;

// Where a box begins: column, row and layer of a map.
struct Place {
  int32_t column;
  int32_t row;
  int32_t layer;
};

// The place of an address in a map of this pitch.
__device__ inline Place PlaceAt(uint64_t address, uint32_t pitch_units, uint64_t reciprocal) {
  const uint64_t units = (address - kMapBase) / kPitchUnit;
  const uint64_t row = __umul64hi(units, reciprocal);
  const auto rest = static_cast<uint32_t>(units) - static_cast<uint32_t>(row) * pitch_units;
  return {static_cast<int32_t>(rest * (kPitchUnit / 2)),
          static_cast<int32_t>(row & (kRowsPerLayer - 1)),
          static_cast<int32_t>(row >> kRowsPerLayerLog2)};
}

// Copies the box at `place`, kBoxBytes of it, to shared memory, 1,024-byte aligned; completes on
// the barrier.
__device__ inline void CopyBox(uint32_t to, const CUtensorMap* map, const Place& place,
                               uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(place.column), "r"(place.row), "r"(place.layer), "r"(barrier)
      : "memory");
}

__device__ inline void LoadShared16(uint32_t from, uint32_t (&to)[4]) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

__device__ inline void StoreShared4(uint32_t to, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

// Before a map that lies in device memory, where the host put it, is used by the thread.
__device__ inline void FenceMap(const CUtensorMap* map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
}

// Between a thread's own stores to shared memory and the arrival after which matrix units or the
// copy engine read them.
__device__ inline void FenceSharedStores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace annulus::cuda::sm90
