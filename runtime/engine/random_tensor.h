// Tensors for timing. Thread-safe with a generator per thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "annulus/tensor.h"
#include "base/rng.h"

namespace annulus {

// [tokens, heads, dim]: one block of normally distributed values, again and again, since making
// new ones takes longer than attending to them and what values they are costs nothing.
inline Tensor RandomTensor(Rng& rng, DType dtype, int64_t tokens, int heads, int dim) {
  constexpr size_t kValues = 1 << 13;
  std::vector<float> values(kValues);
  for (float& value : values) value = rng.Normal();
  Tensor tensor(dtype, tokens, heads, dim);
  const auto total = static_cast<size_t>(tensor.view().size());
  for (size_t at = 0; at < total; at += kValues) {
    Convert(values.data(), DType::kF32, tensor.data() + at * SizeOf(dtype), dtype,
            static_cast<int64_t>(std::min(kValues, total - at)));
  }
  return tensor;
}

}  // namespace annulus
