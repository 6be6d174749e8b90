// Memory for bulk data. From 2 MiB on it is asked for in huge pages, which the system may grant:
// reading a million-token context would else spend as much on finding pages as on reading them.
// Up to 128 MiB that were given back are kept for who wants as much next. Thread-safe.
#pragma once

#include <cstddef>
#include <memory>

namespace annulus {

struct MemoryDeleter {
  size_t size_bytes = 0;
  void operator()(std::byte* memory) const;
};

// 64-byte aligned. Throws std::bad_alloc.
using Memory = std::unique_ptr<std::byte, MemoryDeleter>;
Memory AllocateMemory(size_t size_bytes);        // NOT zeroed
Memory AllocateZeroedMemory(size_t size_bytes);  // what is large and new is not touched

}  // namespace annulus
