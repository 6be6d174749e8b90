#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "bench/gpu/fill.h"

namespace annulus {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4096;

__device__ inline uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

__device__ inline float Normal(uint64_t seed, int64_t i) {  // Box and Muller
  const uint64_t bits = Mix(seed ^ Mix(static_cast<uint64_t>(i)));
  const float u = (static_cast<float>(bits >> 40) + 1) * 0x1p-24f;
  const float v = static_cast<float>(bits & 0xffffff) * 0x1p-24f;
  return sqrtf(-2 * logf(u)) * cospif(2 * v);
}

// With a head dim, one channel is eight times as large as the others, and every 256th row, a sink,
// three times.
__device__ inline float Outlier(int64_t i, int64_t head_dim) {
  return (i % head_dim == 5 ? 8.0f : 1.0f) * (i / head_dim % 256 == 0 ? 3.0f : 1.0f);
}

__global__ void Normals(void* to, int64_t count, int format, uint64_t seed, int64_t head_dim) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{kBlocks} * kThreads) {
    const float x = Normal(seed, i) * (head_dim == 0 ? 1.0f : Outlier(i, head_dim));
    if (format == 0) static_cast<float*>(to)[i] = x;
    if (format == 1) static_cast<__half*>(to)[i] = __float2half(x);
    if (format == 2) static_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16(x);
  }
}

__global__ void Values(float* to, int64_t count, float value) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{kBlocks} * kThreads) {
    to[i] = value;
  }
}

__global__ void Reads(const uint4* from, int64_t count, uint32_t* never) {
  uint32_t bits = 0;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{kBlocks} * kThreads) {
    const uint4 word = from[i];
    bits |= word.x | word.y | word.z | word.w;
  }
  if (bits == 0xffffffff) *never = bits;
}

}  // namespace

cudaError_t FillNormal(void* to, int64_t count, int format, uint64_t seed, int64_t outlier_head_dim,
                       cudaStream_t stream) {
  Normals<<<kBlocks, kThreads, 0, stream>>>(to, count, format, seed, outlier_head_dim);
  return cudaGetLastError();
}

cudaError_t FillValue(float* to, int64_t count, float value, cudaStream_t stream) {
  Values<<<kBlocks, kThreads, 0, stream>>>(to, count, value);
  return cudaGetLastError();
}

cudaError_t ReadZeros(void* from, size_t bytes, cudaStream_t stream) {
  Reads<<<kBlocks, kThreads, 0, stream>>>(static_cast<const uint4*>(from),
                                          static_cast<int64_t>(bytes / sizeof(uint4)),
                                          static_cast<uint32_t*>(from));
  return cudaGetLastError();
}

}  // namespace annulus
