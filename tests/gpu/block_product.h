// The matrix units and the copy engine of sm_90a as the kernels use them, on one block.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace annulus::test {

// Of one block of 64 keys; device memory, 16-bit elements with rows of their own pitches.
struct BlockProduct {
  const void* queries;  // [64, dim]
  const void* keys;     // [rows, dim]
  const void* values;   // [rows, dim]
  const void* weights;  // [64, 64], without gaps
  int64_t q_pitch;      // bytes
  int64_t k_pitch;
  int64_t v_pitch;
  int rows;  // of keys and values that may be read; the others count as zeros
  int dim;   // 64, 128 or 256
  bool bf16;
  float* scores;  // [64, 64] = queries · keys
  float* sums;    // [64, dim] = 2 · weights · values
};

cudaError_t LaunchBlockProduct(const BlockProduct& problem, cudaStream_t stream);

}  // namespace annulus::test
