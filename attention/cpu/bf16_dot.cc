// Kernels with instructions that Highway does not reach: AVX512-BF16's dot product, 32 bf16
// products into 16 f32 sums at once. Nothing here runs on a machine without it.
#include <cstdint>

#include "attention/cpu/kernels.h"

#if defined(__x86_64__)
#include "attention/cpu/bf16_panel-inl.h"
#include "attention/cpu/bf16_stream-inl.h"

namespace annulus::cpu {
namespace {

bool MachineHasIt() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
         __builtin_cpu_supports("avx512bf16") != 0;
}

constexpr KernelSet kBf16Dot = {
    "AVX512_BF16",
    bf16::kStreamRowsMax,
    true,
    {bf16::PanelFloatsOf, bf16::PanelSetQuery, bf16::PanelAttend, bf16::PanelGetOut},
    {bf16::StreamFloats, bf16::StreamSetQuery, bf16::StreamAttend, bf16::StreamGetOut},
    bf16::Takes,
};

}  // namespace

const KernelSet* Bf16DotKernels() {
  static const bool machine_has_it = MachineHasIt();
  return machine_has_it && FmaKernels().avx512 ? &kBf16Dot : nullptr;
}

double Bf16DotChains(int64_t steps, float* sink) {
  return bf16::DotChains(steps, sink);
}

}  // namespace annulus::cpu

#else

namespace annulus::cpu {
const KernelSet* Bf16DotKernels() {
  return nullptr;
}
double Bf16DotChains(int64_t, float*) {
  return 0;
}
}  // namespace annulus::cpu

#endif
