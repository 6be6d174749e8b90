#include "runtime/store/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace annulus {

uint32_t Crc32c(const void* bytes, size_t size_bytes) {
  // The library wants a mutable pointer and an int; it writes nothing.
  constexpr size_t kPieceMax = size_t{1} << 30;
  auto* at = static_cast<unsigned char*>(const_cast<void*>(bytes));
  uint32_t crc = ~uint32_t{0};
  while (size_bytes > 0) {
    const size_t piece = std::min(size_bytes, kPieceMax);
    crc = crc32_iscsi(at, static_cast<int>(piece), crc);
    at += piece;
    size_bytes -= piece;
  }
  return ~crc;
}

}  // namespace annulus
