// Kernels for what is done to rows beside attention: copies, merges, the ends of rows. Plain
// structs in device memory; launchers do not wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace annulus::cuda {

// As RowsCopy (attention/memory_space.h).
struct CopyItem {
  const void* from;
  void* to;
  int64_t rows;
  size_t row_bytes;
  size_t from_stride_bytes;
  size_t to_stride_bytes;
};

// A row, or a piece of one, in pinned memory, and where it goes. The size is one that a warp reads
// at once.
struct alignas(32) FetchItem {
  const void* from;
  void* to;
  size_t bytes;
};

// As RowsMerge; strides of rows in heads.
struct MergeItem {
  float* into_out;
  float* into_lse;
  float* from_out;
  float* from_lse;
  int64_t into_heads;
  int64_t from_heads;
  int64_t rows;
  int32_t heads;
  int32_t v_head_dim;
  int32_t forget;
};

// `bytes_max`: of the largest item. `merges`: rows · heads of the largest item.
cudaError_t LaunchCopies(const CopyItem* items, int count, size_t bytes_max, cudaStream_t stream);
// Items that lie in pinned memory too; a warp does each.
cudaError_t LaunchFetches(const FetchItem* items, int count, cudaStream_t stream);
cudaError_t LaunchMerges(const MergeItem* items, int count, int64_t rows_max, cudaStream_t stream);

// Every row of out [rows, v_head_dim] and lse [rows] to the identity.
cudaError_t LaunchIdentity(float* out, float* lse, int64_t rows, int64_t v_head_dim,
                           cudaStream_t stream);
// Rows that saw nothing get out 0; the least row that has no answer goes to *bad_row, which must
// begin as `rows` or more.
cudaError_t LaunchEndRows(float* out, const float* lse, int64_t rows, int64_t v_head_dim,
                          unsigned long long* bad_row, cudaStream_t stream);

// Loads them into the current device.
cudaError_t LoadRows();

}  // namespace annulus::cuda
