// What this machine can do at most, measured now: the denominators of every speed we print.
// Machines differ and share hosts, so a figure is a ratio to a peak of the same run.
#pragma once

#include <cstddef>

#include "absl/types/span.h"
#include "annulus/buffer.h"
#include "base/thread_pool.h"

namespace annulus {

// f32 FLOP/s of independent fused multiply-adds on `threads` threads (0: one per core), with the
// instruction set that the CPU backend uses; an FMA counts 2. Takes about 50 ms.
double MeasureFmaPeak(int threads);

// FLOP/s of AVX512-BF16's dot products (a pair of products counts 4), or 0 where the CPU backend
// has no use of them. Takes about 50 ms.
double MeasureBf16DotPeak(int threads);

// One pass of all threads over `data`: bytes/s. It should be many times the last-level cache.
double MeasureRead(ThreadPool* pool, absl::Span<const std::byte> data);

// Reads a buffer again and again; keeps it between passes so that passes can alternate with what
// is compared to them. Not thread-safe.
class ReadProbe {
 public:
  ReadProbe(int threads, size_t bytes);

  double Measure() { return MeasureRead(&pool_, buffer_.span()); }

 private:
  ThreadPool pool_;
  Buffer buffer_;
};

// The best of five passes of a ReadProbe, in bytes/s.
double MeasureReadBandwidth(int threads, size_t bytes);

}  // namespace annulus
