#include "attention/cpu/kernels.h"

#include "attention/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/cpu/kernels.cc"
#include "hwy/foreach_target.h"  // includes this file once per instruction set

#include "hwy/highway.h"
// After Highway, which defines the instruction set that they are read for.
#include "attention/cpu/panel-inl.h"
#include "attention/cpu/stream-inl.h"

HWY_BEFORE_NAMESPACE();
namespace annulus::cpu::HWY_NAMESPACE {

const KernelSet* Kernels() {
  constexpr bool kAvx512 = HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3;
  constexpr Kernel kPanel = {PanelFloatsOf, PanelSetQuery, PanelAttend, PanelGetOut};
#if HWY_TARGET == HWY_SCALAR  // one lane: nothing to lay along the dims
  static const KernelSet kernels = {hwy::TargetName(HWY_TARGET), 0, kAvx512, kPanel, kPanel};
#else
  constexpr Kernel kStream = {StreamFloats, StreamSetQuery, StreamAttend, StreamGetOut};
  static const KernelSet kernels = {hwy::TargetName(HWY_TARGET), kStreamRowsMax, kAvx512, kPanel,
                                    kStream};
#endif
  return &kernels;
}

}  // namespace annulus::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace annulus::cpu {

HWY_EXPORT(Kernels);

const KernelSet& FmaKernels() {
  return *HWY_DYNAMIC_DISPATCH(Kernels)();
}

const KernelSet& KernelsFor(DType q, DType kv) {
  const KernelSet* dot = q == DType::kBF16 && kv == DType::kBF16 ? Bf16DotKernels() : nullptr;
  return dot != nullptr ? *dot : FmaKernels();
}

}  // namespace annulus::cpu
#endif
