// How large keys are: where no score can come near f32's range, kernels need not look for it.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/device.cuh"
#include "attention/cuda/load.cuh"

namespace annulus::cuda {
namespace {

inline constexpr int kWarps = 8;

// The largest magnitude among 16-bit numbers, in the upper half of the result.
__device__ inline uint32_t LargestOf(uint32_t largest, const uint4& numbers) {
  for (const uint32_t pair : {numbers.x, numbers.y, numbers.z, numbers.w}) {
    largest = max(largest, max(pair & 0x7fffffffu, (pair << 16) & 0x7fffffffu));
  }
  return largest;
}

// A warp takes a block of one KV head at a time.
__global__ void __launch_bounds__(32 * kWarps) MeasureKeys(const Work work) {
  const KeyRun run = work.key_runs[blockIdx.x];
  const Problem& problem = work.problems[run.problem];
  const int head = static_cast<int>(blockIdx.y);
  if (head >= problem.kv_heads) return;
  const int lane = threadIdx.x % 32;
  const int chunks = problem.head_dim / 8;
  uint32_t largest = 0;
  for (int i = threadIdx.x / 32; i < run.count; i += kWarps) {
    const int block = run.first + i * run.step;
    const Page page = problem.pages[int64_t{block} * problem.kv_heads + head];
    const int64_t left = problem.kv_tokens - int64_t{block} * kBlockKeys;
    const int keys = page.k == nullptr   ? 0
                     : left < kBlockKeys ? static_cast<int>(left)
                                         : kBlockKeys;
    const auto* rows = static_cast<const uint16_t*>(page.k);
#pragma unroll 8
    for (int at = lane; at < keys * chunks; at += 32) {
      const int64_t row = at / chunks;
      const auto* from = rows + row * page.k_row_stride + at % chunks * 8;
      largest = LargestOf(largest, *reinterpret_cast<const uint4*>(from));
    }
  }
  largest = __reduce_max_sync(~0u, largest) >> 16;
  if (lane != 0) return;
  const float size = problem.kv_format == Format::kBF16
                         ? __uint_as_float(largest << 16)
                         : __half2float(__ushort_as_half(static_cast<uint16_t>(largest)));
  atomicMax(&work.key_sizes[run.problem], __float_as_uint(size));
}

}  // namespace

cudaError_t LoadMeasure() {
  int thread_blocks = 0;
  return LoadKernel(MeasureKeys, 32 * kWarps, 0, &thread_blocks);
}

cudaError_t LaunchMeasure(const Work& work, int runs, int kv_heads_max, cudaStream_t stream) {
  if (runs == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(runs), static_cast<unsigned>(kv_heads_max));
  MeasureKeys<<<grid, 32 * kWarps, 0, stream>>>(work);
  return cudaGetLastError();
}

}  // namespace annulus::cuda
