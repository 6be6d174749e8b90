// Bytes with shared ownership: one payload can be on its way to many peers without a copy.
// Allocated 64-byte aligned and NOT zeroed. Copying copies the reference. The bytes may be written
// by the one who allocated them, until the buffer is handed on. Reference counting is thread-safe.
// A buffer may also be a GPU's memory: then only data() and size() are for the host.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/types/span.h"

namespace annulus {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size_bytes);  // throws std::bad_alloc
  // Takes over memory that somebody else allocated.
  Buffer(std::shared_ptr<std::byte> data, size_t size_bytes)
      : data_(std::move(data)), size_bytes_(size_bytes) {}

  static Buffer Copy(const void* bytes, size_t size_bytes) {
    Buffer buffer(size_bytes);
    if (size_bytes != 0) std::memcpy(buffer.data(), bytes, size_bytes);
    return buffer;
  }

  // A part of it, which keeps the whole.
  Buffer Part(size_t at, size_t size_bytes) const {
    return Buffer(std::shared_ptr<std::byte>(data_, data_.get() + at), size_bytes);
  }

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return size_bytes_; }
  bool empty() const { return size_bytes_ == 0; }
  absl::Span<const std::byte> span() const { return {data_.get(), size_bytes_}; }

 private:
  std::shared_ptr<std::byte> data_;
  size_t size_bytes_ = 0;
};

}  // namespace annulus
