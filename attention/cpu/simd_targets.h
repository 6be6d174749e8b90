// The instruction sets that the CPU code is compiled for; include before Highway. SSSE3 machines
// are served by the portable code, and scalable vectors (SVE) by NEON: register blocking needs a
// vector length known when compiling.
#pragma once

#include "hwy/detect_compiler_arch.h"

#if HWY_ARCH_X86
#define HWY_DISABLED_TARGETS HWY_SSSE3
#elif HWY_ARCH_ARM
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif
