// Kernels that the GPU bench needs beside those that it times.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace annulus {

// Random normal values by `seed`; format as in attention/cuda/work.h: 0 f32, 1 f16, 2 bf16.
cudaError_t FillNormal(void* to, int64_t count, int format, uint64_t seed, cudaStream_t stream);
cudaError_t FillValue(float* to, int64_t count, float value, cudaStream_t stream);

}  // namespace annulus
