// A regular file's bytes, mapped read-only. Thread-safe. Whoever truncates the file meanwhile ends
// the process that reads it.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace annulus {

class MappedFile {
 public:
  // INVALID_ARGUMENT names the path and what the system said.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MappedFile();

  absl::Span<const std::byte> bytes() const { return bytes_; }

 private:
  MappedFile() = default;

  absl::Span<const std::byte> bytes_;
};

}  // namespace annulus
