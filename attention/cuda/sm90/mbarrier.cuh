// Barriers in shared memory that count arrivals of threads and bytes of copies (PTX ISA,
// "mbarrier"). A barrier's phases alternate between parity 0 and 1; it begins in phase 0.
#pragma once

#include <cstdint>

namespace annulus::cuda::sm90 {

// `barrier` is an address in shared memory here and below, 8-byte aligned.
__device__ inline void InitBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// After the last InitBarrier, before copies may complete on them. Other threads need a
// __syncthreads besides.
__device__ inline void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and makes the phase wait for so many bytes of copies too.
__device__ inline void ArriveExpecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Waits for the end of the phase of this parity. Without a time to suspend for: with one, ptxas
// puts a sleep in the loop, and the waiter wakes too late.
__device__ inline void Wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni end;\n"
      "bra.uni again;\n"
      "end:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A stage of a ring of kStages, and the parity of its barriers' phases at hand. Who waits for
// stages to be filled begins with parity 0; who waits for them to be empty, with 1, which passes
// at once in the first round.
template <int kStages>
struct Ring {
  uint32_t stage = 0;
  uint32_t parity = 0;

  __device__ void Next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace annulus::cuda::sm90
