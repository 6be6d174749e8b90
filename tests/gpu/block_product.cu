#include "tests/gpu/block_product.h"

#include "attention/cuda/sm90/copy.cuh"
#include "attention/cuda/sm90/mbarrier.cuh"
#include "attention/cuda/sm90/tensor_map.h"
#include "attention/cuda/sm90/warpgroup.cuh"
#include "attention/cuda/sm90/wgmma.cuh"

namespace annulus::test {
namespace {

using namespace cuda::sm90;

constexpr int kAlign = 1024;

struct Maps {
  CUtensorMap q, k, v;
  uint64_t reciprocals[3];
};

template <int kDim>
__device__ void CopyTile(uint32_t to, const CUtensorMap* map, Place place, uint32_t barrier) {
  for (int chunk = 0; chunk < kDim / 64; ++chunk, place.column += 64) {
    CopyBox(to + chunk * kBoxBytes, map, place, barrier);
  }
}

// The accumulators' rows and columns.
template <int kTiles>
__device__ void Store(const float (&d)[kTiles][4], float* to) {
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x / 32 * 16 + lane / 4;
  for (int n = 0; n < kTiles; ++n) {
    for (int i = 0; i < 4; ++i) {
      to[(row + i / 2 * 8) * 8 * kTiles + 8 * n + 2 * (lane % 4) + i % 2] = d[n][i];
    }
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kGroupThreads)
    Multiply(const BlockProduct problem, const __grid_constant__ Maps maps) {
  extern __shared__ unsigned char memory[];
  __shared__ uint64_t barrier_memory;
  const auto barrier = static_cast<uint32_t>(__cvta_generic_to_shared(&barrier_memory));
  uint32_t q = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
  q = (q + kAlign - 1) / kAlign * kAlign;
  const uint32_t k = q + kDim * 128;
  const uint32_t v = k + kDim * 128;
  if (threadIdx.x == 0) {
    InitBarrier(barrier, 1);
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x < 32 && Elect()) {
    const auto place = [&](const void* at, int64_t pitch, int i) {
      return PlaceAt(reinterpret_cast<uint64_t>(at), static_cast<uint32_t>(pitch / kPitchUnit),
                     maps.reciprocals[i]);
    };
    const bool whole = problem.rows == 64;
    ArriveExpecting(barrier, 3 * kDim * 128);
    CopyTile<kDim>(q, &maps.q, place(problem.queries, problem.q_pitch, 0), barrier);
    CopyTile<kDim>(k, &maps.k, whole ? place(problem.keys, problem.k_pitch, 1) : Place{}, barrier);
    CopyTile<kDim>(v, &maps.v, whole ? place(problem.values, problem.v_pitch, 2) : Place{},
                   barrier);
  }
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x / 32 * 16 + lane / 4;
  uint32_t weights[4][4];
  for (int i = 0; i < 16; ++i) {
    const int r = row + i % 2 * 8;
    const int column = i / 4 * 16 + i % 4 / 2 * 8 + 2 * (lane % 4);
    weights[i / 4][i % 4] = *reinterpret_cast<const uint32_t*>(
        static_cast<const T*>(problem.weights) + r * 64 + column);
  }
  Wait(barrier, 0);
  float sums[kDim / 8][4] = {};
  float scores[8][4];
  // As a step of the kernel: values of one step and scores of the next as one group of products,
  // the weights overwritten right after the wait.
  for (int step = 0; step < 2; ++step) {
    Pin(weights);
    Pin(sums);
    FenceProducts();
    AddBlock<T>(sums, weights, Describe(v, kBoxBytes));
    ScoreBlock<T, kDim>(scores, Describe(q, 0), Describe(k, 0));
    CommitProducts();
    WaitForProducts();
    Pin(sums);
    Pin(scores);
    if (step == 0) continue;
    Store(scores, problem.scores);
  }
  Store(sums, problem.sums);
}

template <typename T, int kDim>
cudaError_t Launch(const BlockProduct& problem, cudaStream_t stream) {
  Maps maps;
  const auto pitches = {problem.q_pitch, problem.k_pitch, problem.v_pitch};
  int i = 0;
  for (const int64_t pitch : pitches) {
    maps.reciprocals[i++] = Reciprocal(static_cast<uint64_t>(pitch / kPitchUnit));
  }
  const auto make = [&](const void* first, int64_t pitch, CUtensorMap* map) {
    return problem.rows == 64 || first == problem.queries
               ? MakeMap(static_cast<uint64_t>(pitch), kDim, map)
               : MakeShortMap(first, static_cast<uint64_t>(pitch), kDim, problem.rows, map);
  };
  cudaError_t error = make(problem.queries, problem.q_pitch, &maps.q);
  if (error == cudaSuccess) error = make(problem.keys, problem.k_pitch, &maps.k);
  if (error == cudaSuccess) error = make(problem.values, problem.v_pitch, &maps.v);
  constexpr int kBytes = 3 * kDim * 128 + kAlign;
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(Multiply<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 kBytes);
  }
  if (error != cudaSuccess) return error;
  Multiply<T, kDim><<<1, kGroupThreads, kBytes, stream>>>(problem, maps);
  return cudaGetLastError();
}

template <typename T>
cudaError_t LaunchFor(const BlockProduct& problem, cudaStream_t stream) {
  if (problem.dim == 64) return Launch<T, 64>(problem, stream);
  return problem.dim == 128 ? Launch<T, 128>(problem, stream) : Launch<T, 256>(problem, stream);
}

}  // namespace

cudaError_t LaunchBlockProduct(const BlockProduct& problem, cudaStream_t stream) {
  return problem.bf16 ? LaunchFor<__nv_bfloat16>(problem, stream)
                      : LaunchFor<__half>(problem, stream);
}

}  // namespace annulus::test
