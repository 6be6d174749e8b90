// What four warps that run together do: hand registers over, elect a thread.
#pragma once

#include <cstdint>

namespace annulus::cuda::sm90 {

inline constexpr int kGroupThreads = 128;

// How the registers of a thread block are shared out: one warpgroup with few, which moves data, the
// others with many, which compute; the first of these may have kMore than they, which the last one
// gives. setmaxnreg takes from what the thread block got at its launch,
// `kThreads` times what __launch_bounds__(kThreads, kBlocks) allows a thread; asked for more it
// waits for ever.
template <int kThreads, int kFew, int kMany, int kMore = 0, int kBlocks = 1>
struct Registers {
  static constexpr int kAtEntry = 65536 / (kThreads * kBlocks) / 8 * 8;
  static_assert(kFew % 8 == 0 && kMany % 8 == 0 && kMore % 8 == 0);
  static_assert(kFew >= 24 && kMany + kMore <= 248);
  static_assert(kFew <= kAtEntry && kMany - kMore >= kAtEntry);
  static_assert(kFew * kGroupThreads + kMany * (kThreads - kGroupThreads) <= kAtEntry * kThreads);

  static __device__ void KeepFew() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kFew));
  }
  static __device__ void TakeMany() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kMany));
  }
  static __device__ void TakeMost() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kMany + kMore));
  }
  static __device__ void TakeLess() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kMany - kMore));
  }
};

// Whether it is true in any thread of the warpgroup; `barrier`: a named one of its own, 1 to 15.
__device__ inline bool AnyOfGroup(bool value, int barrier) {
  uint32_t any;
  asm volatile(
      "{\n"
      ".reg .pred p, q;\n"
      "setp.ne.u32 p, %1, 0;\n"
      "barrier.cta.red.or.pred q, %2, %3, p;\n"
      "selp.u32 %0, 1, 0, q;\n"
      "}"
      : "=r"(any)
      : "r"(static_cast<uint32_t>(value)), "r"(barrier), "n"(kGroupThreads)
      : "memory");
  return any != 0;
}

// Named barriers (1 to 15) between warpgroups: waits until the other one has arrived, and arrives
// without waiting.
__device__ inline void AwaitGroup(int barrier) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(barrier), "n"(2 * kGroupThreads) : "memory");
}
__device__ inline void TellGroup(int barrier) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(barrier), "n"(2 * kGroupThreads) : "memory");
}

// True in one thread of the warp, always the same.
__device__ inline bool Elect() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// The first lane's value, in a way that the compiler sees to be the same in all lanes.
__device__ inline uint32_t Uniform(uint32_t value) {
  return __shfl_sync(~0u, value, 0);
}

}  // namespace annulus::cuda::sm90
