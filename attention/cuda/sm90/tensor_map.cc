#include "attention/cuda/sm90/tensor_map.h"

namespace annulus::cuda::sm90 {
namespace {

constexpr cuuint32_t kBox = 64;

// The driver's function, which the runtime does not offer; null in drivers before CUDA 12.
decltype(&cuTensorMapEncodeTiled) Encoder() {
  static const auto encoder = []() -> decltype(&cuTensorMapEncodeTiled) {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                         &result) != cudaSuccess ||
        result != cudaDriverEntryPointSuccess) {
      return nullptr;
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  return encoder;
}

cudaError_t Make(uint64_t base, uint64_t pitch_bytes, uint64_t columns, uint64_t rows,
                 uint64_t layers, CUtensorMap* map) {
  if (Encoder() == nullptr) return cudaErrorCallRequiresNewerDriver;
  const cuuint64_t sizes[3] = {columns, rows, layers};
  const cuuint64_t strides[2] = {pitch_bytes, pitch_bytes * kRowsPerLayer};
  const cuuint32_t box[3] = {kBox, kBox, 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult result =
      Encoder()(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, reinterpret_cast<void*>(base), sizes,
                strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t MakeMap(uint64_t pitch_bytes, int columns, CUtensorMap* map) {
  // A box may begin at any column of a pitch, and in the last rows of a layer.
  return Make(kMapBase, pitch_bytes, pitch_bytes / 2 + static_cast<uint64_t>(columns),
              kRowsPerLayer + kBox, uint64_t{1} << 31, map);
}

cudaError_t MakeShortMap(const void* first, uint64_t pitch_bytes, int columns, int rows,
                         CUtensorMap* map) {
  return Make(reinterpret_cast<uint64_t>(first), pitch_bytes, static_cast<uint64_t>(columns),
              static_cast<uint64_t>(rows), 1, map);
}

}  // namespace annulus::cuda::sm90
