// Memory for bulk data. From 2 MiB on it is asked for in huge pages, which the system may grant:
// reading a million-token context would else spend as much on finding pages as on reading them.
// Some of what was given back is kept for who wants as much next. Thread-safe.
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

// Of bulk data that was given back, by a process that says nothing else.
inline constexpr size_t kKeptBytesDefault = size_t{128} << 20;

// For programs that serve, which will need again what they give back: keeps up to `bytes_max` of
// bulk data from now on, and has the general allocator keep up to 64 MiB at the end of each of its
// heaps until a HeapTrimmer comes by. Else megabytes of messages come and go with the system's
// pages, which costs an upload more than all its copies. The heaps are two from now on: with one
// for every few threads, each would hold its own share of what is free.
void KeepFreedMemory(size_t bytes_max = kKeptBytesDefault);

// Gives back to the system what is kept and nobody has needed since the last time, and what the
// general allocator's heaps hold free.
void GiveBackIdleMemory();

}  // namespace annulus
