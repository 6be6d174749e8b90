// What the targets of the public protocol share.
#pragma once

#include "annulus/tensor.h"
#include "tests/fuzz/targets/targets.h"

namespace annulus::fuzz {

// Reads all of a tensor's bytes, so that a sanitizer sees those that are not there.
inline unsigned Sum(const TensorView& view) {
  unsigned sum = 0;
  const size_t row_bytes = static_cast<size_t>(view.dim) * SizeOf(view.dtype);
  for (int64_t token = 0; token < view.tokens; ++token) {
    for (int64_t head = 0; head < view.heads; ++head) {
      const std::byte* row = view.Row(token, head);
      for (size_t i = 0; i < row_bytes; ++i) sum += static_cast<unsigned>(row[i]);
    }
  }
  return sum;
}

template <typename Message>
bool Parse(Bytes bytes, Message* message) {
  return message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
}

}  // namespace annulus::fuzz
