#include "attention/cpu/machine_peaks.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "absl/functional/function_ref.h"
#include "attention/cpu/kernels.h"
#include "attention/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/cpu/machine_peaks.cc"
#include "hwy/foreach_target.h"  // includes this file once per instruction set

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace annulus::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Twelve chains hide the latency of any core's FMA units and fit 16 registers. Returns the flops
// done; `sink` keeps them from being optimised away.
double FmaChains(int64_t steps, float* sink) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const V factor = hn::Set(d, 0.9999f);
  const V term = hn::Set(d, 1e-3f);
  V chains[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) chains[i] = hn::Set(d, static_cast<float>(i));
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) chains[i] = hn::MulAdd(chains[i], factor, term);
  }
  V sum = chains[0];
#pragma GCC unroll 12
  for (int i = 1; i < 12; ++i) sum = hn::Add(sum, chains[i]);
  *sink = hn::GetLane(sum);
  return 2.0 * 12.0 * static_cast<double>(steps) * static_cast<double>(hn::Lanes(d));
}

// Reads `bytes` (a multiple of 256) and returns something that depends on all of them. In order and
// without prefetching, which is the fastest there is: requests of our own only disturb the
// machine's.
uint64_t ReadAll(const std::byte* data, size_t bytes) {
  const hn::ScalableTag<uint64_t> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  V sums[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  for (size_t i = 0; i < bytes / 8; i += 4 * lanes) {
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j) {
      sums[j] = hn::Xor(sums[j], hn::LoadU(d, words + i + j * lanes));
    }
  }
  return hn::GetLane(hn::Xor(hn::Xor(sums[0], sums[1]), hn::Xor(sums[2], sums[3])));
}

}  // namespace annulus::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace annulus {
namespace cpu {
HWY_EXPORT(FmaChains);
HWY_EXPORT(ReadAll);
}  // namespace cpu

namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 20;
constexpr int64_t kReadBytes = 256;  // what ReadAll takes at a time

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The best of four passes of `chains`, which returns the flops it did, on all threads.
double BestRate(int threads, absl::FunctionRef<double(int64_t, float*)> chains) {
  constexpr int64_t kSteps = 2'000'000;
  ThreadPool pool(threads);
  double best = 0;
  for (int pass = 0; pass < 4; ++pass) {
    std::atomic<double> flops{0};
    std::atomic<float> kept{0};
    const double start = Seconds();
    pool.ParallelFor(pool.threads(), [&](int64_t) {
      float sink = 0;
      flops.fetch_add(chains(kSteps, &sink));
      kept.store(sink, std::memory_order_relaxed);
    });
    best = std::max(best, flops.load() / (Seconds() - start));
  }
  return best;
}

}  // namespace

double MeasureFmaPeak(int threads) {
  return BestRate(threads, [](int64_t steps, float* sink) {
    return HWY_DYNAMIC_DISPATCH(cpu::FmaChains)(steps, sink);
  });
}

double MeasureBf16DotPeak(int threads) {
  return cpu::Bf16DotKernels() == nullptr ? 0 : BestRate(threads, cpu::Bf16DotChains);
}

double MeasureRead(ThreadPool* pool, absl::Span<const std::byte> data) {
  const auto bytes = static_cast<int64_t>(data.size());
  std::atomic<uint64_t> kept{0};
  const double start = Seconds();
  pool->ParallelFor((bytes + kPieceBytes - 1) / kPieceBytes, [&](int64_t i) {
    const int64_t begin = i * kPieceBytes;
    const int64_t size = std::min(kPieceBytes, bytes - begin) / kReadBytes * kReadBytes;
    kept.fetch_xor(
        HWY_DYNAMIC_DISPATCH(cpu::ReadAll)(data.data() + begin, static_cast<size_t>(size)),
        std::memory_order_relaxed);
  });
  return static_cast<double>(bytes) / (Seconds() - start);
}

ReadProbe::ReadProbe(int threads, size_t bytes) : pool_(threads), buffer_(bytes) {
  // Distinct pages: untouched ones would all be the kernel's one zero page, and in cache.
  for (size_t at = 0; at < bytes; at += 4096) buffer_.data()[at] = std::byte{1};
}

double MeasureReadBandwidth(int threads, size_t bytes) {
  ReadProbe probe(threads, bytes);
  double best = 0;
  for (int pass = 0; pass < 5; ++pass) best = std::max(best, probe.Measure());
  return best;
}

}  // namespace annulus
#endif
