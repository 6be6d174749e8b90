// Copies, merges and the ends of rows on the device.
#include "attention/cuda/rows.h"

#include "attention/merge_limit.h"

namespace annulus::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr size_t kBlockBytes = size_t{64} << 10;  // that one thread block copies at a time
constexpr unsigned kGridMax = 1 << 15;

// Grid: x over items, y over parts of an item.
template <typename Word>
__device__ void CopyWords(const CopyItem& item) {
  const size_t row_words = item.row_bytes / sizeof(Word);
  const size_t words = row_words * static_cast<size_t>(item.rows);
  const size_t step = size_t{gridDim.y} * kThreads;
  for (size_t i = size_t{blockIdx.y} * kThreads + threadIdx.x; i < words; i += step) {
    const size_t row = item.rows == 1 ? 0 : i / row_words;
    const size_t at = (i - row * row_words) * sizeof(Word);
    const auto* from = static_cast<const char*>(item.from) + row * item.from_stride_bytes + at;
    auto* to = static_cast<char*>(item.to) + row * item.to_stride_bytes + at;
    *reinterpret_cast<Word*>(to) = *reinterpret_cast<const Word*>(from);
  }
}

__global__ void __launch_bounds__(kThreads) CopyRows(const CopyItem* items, int count) {
  for (int i = blockIdx.x; i < count; i += gridDim.x) {
    const CopyItem item = items[i];
    const size_t bits = reinterpret_cast<size_t>(item.from) | reinterpret_cast<size_t>(item.to) |
                        item.row_bytes |
                        (item.rows == 1 ? 0 : item.from_stride_bytes | item.to_stride_bytes);
    if (bits % sizeof(uint4) == 0) {
      CopyWords<uint4>(item);
    } else {
      CopyWords<char>(item);
    }
  }
}

template <typename Word>
__device__ void FetchWords(const FetchItem& item, int lane) {
  const auto* from = static_cast<const Word*>(item.from);
  auto* to = static_cast<Word*>(item.to);
  const size_t words = item.bytes / sizeof(Word);
#pragma unroll 4
  for (size_t i = lane; i < words; i += 32) to[i] = from[i];
}

// Memory of the host takes long to answer: each item asks it twice, and all do so at once.
__global__ void __launch_bounds__(kThreads) FetchRows(const FetchItem* items, int count) {
  const int i = blockIdx.x * kWarps + threadIdx.x / 32;
  if (i >= count) return;
  const FetchItem item = items[i];
  const size_t bits =
      reinterpret_cast<size_t>(item.from) | reinterpret_cast<size_t>(item.to) | item.bytes;
  if (bits % sizeof(uint4) == 0) {
    FetchWords<uint4>(item, threadIdx.x % 32);
  } else {
    FetchWords<char>(item, threadIdx.x % 32);
  }
}

// One warp for a row and head. Grid: x over items, y over parts of an item.
__global__ void __launch_bounds__(kThreads) MergePartials(const MergeItem* items, int count) {
  const int lane = threadIdx.x % 32;
  for (int i = blockIdx.x; i < count; i += gridDim.x) {
    const MergeItem item = items[i];
    const int64_t all = item.rows * item.heads;
    for (int64_t at = int64_t{blockIdx.y} * kWarps + threadIdx.x / 32; at < all;
         at += int64_t{gridDim.y} * kWarps) {
      const int64_t row = at / item.heads;
      const int64_t head = at - row * item.heads;
      const int64_t into = row * item.into_heads + head;
      const int64_t from = row * item.from_heads + head;
      const float lse = item.into_lse[into];
      const float from_lse = item.from_lse[from];
      __syncwarp();  // all have read
      float* out = item.into_out + into * item.v_head_dim;
      float* from_out = item.from_out + from * item.v_head_dim;
      // A NaN on either side reaches the result, so that Finalise can refuse it.
      if (from_lse != -INFINITY) {
        const float top = fmaxf(lse, from_lse);
        const bool first = lse == -INFINITY;
        const float weight = first ? 0 : expf(lse - top);
        const float from_weight = first ? 1 : expf(from_lse - top);
        const bool lost = !first && fminf(weight, from_weight) * fabsf(top) > kMergeLseMax;
        const float sum = weight + from_weight;
        const float keep = weight / sum;
        const float add = from_weight / sum;
        for (int c = lane; c < item.v_head_dim; c += 32) {
          out[c] = first ? from_out[c] : keep * out[c] + add * from_out[c];
        }
        if (lane == 0) item.into_lse[into] = first ? from_lse : lost ? NAN : top + logf(sum);
      }
      if (item.forget != 0) {
        for (int c = lane; c < item.v_head_dim; c += 32) from_out[c] = 0;
        if (lane == 0) item.from_lse[from] = -INFINITY;
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    SetRows(float* out, float* lse, int64_t rows, int64_t v_head_dim) {
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = first; i < rows * v_head_dim; i += step) out[i] = 0;
  for (int64_t i = first; i < rows; i += step) lse[i] = -INFINITY;
}

__global__ void __launch_bounds__(kThreads)
    FinishRows(float* out, const float* lse, int64_t rows, int64_t v_head_dim,
               unsigned long long* bad_row) {
  const int lane = threadIdx.x % 32;
  const int64_t step = int64_t{gridDim.x} * kWarps;
  for (int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; row < rows; row += step) {
    const bool empty = lse[row] == -INFINITY;
    bool bad = !empty && !isfinite(lse[row]);
    for (int64_t c = lane; c < v_head_dim; c += 32) {
      float* value = out + row * v_head_dim + c;
      if (empty) *value = 0;
      bad |= !isfinite(*value);
    }
    if (bad) atomicMin(bad_row, static_cast<unsigned long long>(row));
  }
}

unsigned Blocks(int64_t parts, unsigned most = kGridMax) {
  return static_cast<unsigned>(parts < 1 ? 1 : parts > most ? most : parts);
}

// Items share out the grid: the more there are, the fewer parts each has.
dim3 GridOf(int items, int64_t parts_max) {
  const unsigned x = Blocks(items);
  return dim3(x, Blocks(parts_max, kGridMax / x));
}

}  // namespace

cudaError_t LaunchCopies(const CopyItem* items, int count, size_t bytes_max, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const dim3 grid = GridOf(count, static_cast<int64_t>(bytes_max / kBlockBytes));
  CopyRows<<<grid, kThreads, 0, stream>>>(items, count);
  return cudaGetLastError();
}

cudaError_t LaunchFetches(const FetchItem* items, int count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  FetchRows<<<static_cast<unsigned>((count + kWarps - 1) / kWarps), kThreads, 0, stream>>>(items,
                                                                                           count);
  return cudaGetLastError();
}

cudaError_t LaunchMerges(const MergeItem* items, int count, int64_t rows_max, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const dim3 grid = GridOf(count, (rows_max + kWarps - 1) / kWarps);
  MergePartials<<<grid, kThreads, 0, stream>>>(items, count);
  return cudaGetLastError();
}

cudaError_t LaunchIdentity(float* out, float* lse, int64_t rows, int64_t v_head_dim,
                           cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  SetRows<<<Blocks(rows * v_head_dim / kThreads), kThreads, 0, stream>>>(out, lse, rows,
                                                                         v_head_dim);
  return cudaGetLastError();
}

cudaError_t LaunchEndRows(float* out, const float* lse, int64_t rows, int64_t v_head_dim,
                          unsigned long long* bad_row, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  FinishRows<<<Blocks((rows + kWarps - 1) / kWarps), kThreads, 0, stream>>>(out, lse, rows,
                                                                            v_head_dim, bad_row);
  return cudaGetLastError();
}

cudaError_t LoadRows() {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaFuncGetAttributes(&attributes, CopyRows);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, FetchRows);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, MergePartials);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, SetRows);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, FinishRows);
  return error;
}

}  // namespace annulus::cuda
