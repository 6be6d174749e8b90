// CRC32C (Castagnoli), the checksum of sealed pages. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace annulus {

uint32_t Crc32c(const void* bytes, size_t size_bytes);

}  // namespace annulus
