// How the persistent kernels of sm_90a are launched.
#pragma once

#include <climits>

#include "attention/cuda/sm90/panel_shape.cuh"

namespace annulus::cuda::sm90 {

inline cudaError_t MakeMaps(const Work& work, int dim, RowMaps* maps) {
  for (int i = 0; i < kRowStrides; ++i) {
    const int32_t stride = work.row_strides[i];
    if (stride == 0) break;
    const auto pitch = static_cast<uint64_t>(stride) * 2;
    maps->stride[i] = stride;
    maps->reciprocal[i] = Reciprocal(pitch / kPitchUnit);
    const cudaError_t error = MakeMap(pitch, dim, &maps->map[i]);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

struct Grid {
  int thread_blocks;
  int stay;  // blocks after which one leaves
};

inline Grid GridOf(const Launch& launch) {
  // Thread blocks that leave early have done kStayBlocks at least, so that these are enough.
  const bool leave = launch.blocks > int64_t{launch.slots} * kStayBlocks;
  Grid grid{launch.count < launch.slots ? launch.count : launch.slots,
            leave ? kStayBlocks : INT_MAX};
  if (leave) grid.thread_blocks += static_cast<int>(launch.blocks / kStayBlocks) + 1;
  return grid;
}

}  // namespace annulus::cuda::sm90
