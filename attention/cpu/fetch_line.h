// Asking for lines of memory before they are needed.
//
// A request is a hint: to the compiler a function that does nothing else has no effect, and GCC
// leaves out its calls. So all of them are inlined wherever they are made.
#pragma once

#include <cstddef>

#define ANNULUS_FETCH_INLINE __attribute__((always_inline)) inline

namespace annulus::cpu {

inline constexpr int kLineBytes = 64;

// The line of an address. Whatever lies there, or nothing: no harm.
ANNULUS_FETCH_INLINE void LineToL1(const void* at) {
  __builtin_prefetch(at, 0, 3);
}
ANNULUS_FETCH_INLINE void LineToL2(const void* at) {
  __builtin_prefetch(at, 0, 2);
}

// As many bytes as lie together.
ANNULUS_FETCH_INLINE void RowToL1(const void* row, size_t bytes) {
  const auto* const from = static_cast<const std::byte*>(row);
  for (size_t at = 0; at < bytes; at += kLineBytes) LineToL1(from + at);
}
ANNULUS_FETCH_INLINE void RowToL2(const void* row, size_t bytes) {
  const auto* const from = static_cast<const std::byte*>(row);
  for (size_t at = 0; at < bytes; at += kLineBytes) LineToL2(from + at);
}

}  // namespace annulus::cpu
