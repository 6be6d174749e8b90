// The CPU backend: SIMD chosen at run time (Highway), block lists tile by tile, KV split over the
// threads when there are few queries. Attend may be called from several threads at once.
#pragma once

#include <memory>

#include "attention/backend.h"

namespace annulus {

// `threads` compute threads, the caller of Attend included; 0 for one per core.
std::unique_ptr<Backend> MakeCpuBackend(int threads);

}  // namespace annulus
