// How kernels get ready for a device.
#pragma once

#include <cuda_runtime.h>

namespace annulus::cuda {

// Loads the kernel into the current device; an error if that has too little shared memory for it.
// *thread_blocks: how many run at once on a multiprocessor.
template <typename Kernel>
cudaError_t LoadKernel(Kernel kernel, int threads, int shared_bytes, int* thread_blocks) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(thread_blocks, kernel, threads,
                                                       static_cast<size_t>(shared_bytes));
}

}  // namespace annulus::cuda
