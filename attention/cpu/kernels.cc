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
  constexpr Kernel kPanel = {PanelSetQuery, PanelAttend, PanelGetOut};
#if HWY_TARGET == HWY_SCALAR  // one lane: nothing to lay along the dims
  static const KernelSet kernels = {hwy::TargetName(HWY_TARGET), 0, kPanel, kPanel};
#else
  constexpr Kernel kStream = {StreamSetQuery, StreamAttend, StreamGetOut};
  static const KernelSet kernels = {hwy::TargetName(HWY_TARGET), kStreamRowsMax, kPanel, kStream};
#endif
  return &kernels;
}

}  // namespace annulus::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace annulus::cpu {

HWY_EXPORT(Kernels);

const KernelSet& BestKernels() {
  return *HWY_DYNAMIC_DISPATCH(Kernels)();
}

}  // namespace annulus::cpu
#endif
