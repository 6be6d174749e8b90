// Maps by which the copy engine reads boxes of 64 rows × 64 columns of 16-bit elements, swizzled as
// the matrix units read them. One map serves all memory with rows of one pitch, whatever it was
// allocated as: it spans the address space, and a box is named by where its first row lies.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace annulus::cuda::sm90 {

// Places are counted from here, in rows; rows beyond kRowsPerLayer are in the next layer.
inline constexpr uint64_t kMapBase = 4096;
inline constexpr int kRowsPerLayerLog2 = 20;
inline constexpr uint32_t kRowsPerLayer = 1u << kRowsPerLayerLog2;
// Pitches are multiples of this.
inline constexpr int kPitchUnit = 16;

// Of all memory with rows of `pitch_bytes`, a multiple of kPitchUnit; boxes of up to `columns`
// from a row's begin on.
cudaError_t MakeMap(uint64_t pitch_bytes, int columns, CUtensorMap* map);

// Of `rows` rows from `first` on: the box's other rows are zeros, and are not read.
cudaError_t MakeShortMap(const void* first, uint64_t pitch_bytes, int columns, int rows,
                         CUtensorMap* map);

// ⌈2⁶⁴ / units⌉ for a pitch of `units` · kPitchUnit bytes: the upper half of its product with n is
// n / units, for n · units < 2⁶⁴.
constexpr uint64_t Reciprocal(uint64_t units) {
  return (~uint64_t{0}) / units + 1;
}

}  // namespace annulus::cuda::sm90
