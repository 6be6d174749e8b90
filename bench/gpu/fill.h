// Kernels that the GPU bench needs beside those that it times.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace annulus {

// Random normal values by `seed`; format as in attention/cuda/work.h: 0 f32, 1 f16, 2 bf16.
// `outlier_head_dim`, if not 0: rows of so many elements have an outlier channel, some are sinks.
cudaError_t FillNormal(void* to, int64_t count, int format, uint64_t seed, int64_t outlier_head_dim,
                       cudaStream_t stream);
cudaError_t FillValue(float* to, int64_t count, float value, cudaStream_t stream);

// Reads so many bytes, which are 0.
cudaError_t ReadZeros(void* from, size_t bytes, cudaStream_t stream);

}  // namespace annulus
