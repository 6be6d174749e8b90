// Whether there is a GPU, and whether it runs sm_90a.
#pragma once

#include <cuda_runtime_api.h>

#include <iostream>

namespace annulus::test {

inline bool HasGpu() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) return true;
  std::cout << "no GPU is found here" << std::endl;
  return false;
}

inline bool HasHopper() {
  cudaDeviceProp properties;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0 &&
      cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.major == 9 &&
      properties.minor == 0) {
    return true;
  }
  std::cout << "no Hopper GPU is found here" << std::endl;
  return false;
}

}  // namespace annulus::test
