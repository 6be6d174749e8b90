// What the file formats share: a shape from outside against the bytes that are there.
// Pure function.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/cli/files/tensor_file.h"

namespace annulus {

// INVALID_ARGUMENT unless `shape` is three sizes ≥ 1 whose elements take exactly `size_bytes`.
absl::StatusOr<TensorPlace> PlaceTensor(DType dtype, absl::Span<const int64_t> shape,
                                        size_t offset_bytes, size_t size_bytes);

}  // namespace annulus
