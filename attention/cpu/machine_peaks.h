// What this machine can do at most, measured now: the denominators of every speed we print.
// Machines differ and share hosts, so a figure is a ratio to a peak of the same run.
#pragma once

#include <cstddef>

#include "base/buffer.h"
#include "base/thread_pool.h"

namespace annulus {

// f32 FLOP/s of independent fused multiply-adds on `threads` threads (0: one per core), with the
// instruction set that the CPU backend uses; an FMA counts 2. Takes about 50 ms.
double MeasureFmaPeak(int threads);

// Reads a buffer again and again; keeps it between passes so that passes can alternate with what
// is compared to them. Not thread-safe.
class ReadProbe {
 public:
  // `bytes` should be many times the last-level cache.
  ReadProbe(int threads, size_t bytes);

  // One pass over the buffer by all threads: bytes/s.
  double Measure();

 private:
  ThreadPool pool_;
  Buffer buffer_;
};

// The best of five passes of a ReadProbe, in bytes/s.
double MeasureReadBandwidth(int threads, size_t bytes);

}  // namespace annulus
