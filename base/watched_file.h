// WatchedFile: a small file that is read again when it has become another one: written anew,
// replaced, or behind a link that leads elsewhere now. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace annulus {

class WatchedFile {
 public:
  WatchedFile(std::string path, size_t bytes_max) : path_(std::move(path)), bytes_max_(bytes_max) {}

  const std::string& path() const { return path_; }

  // Its bytes. INVALID_ARGUMENT names the path and what the system said, or what it is beside a
  // regular file of at most bytes_max.
  absl::StatusOr<std::string> Read();

  // Whether it may be another one than Read last got, or cannot be looked at. Also while it is so
  // young that a change could not be told by its time.
  bool MayHaveChanged() const;

 private:
  struct Stamp {
    uint64_t device = 0;
    uint64_t inode = 0;
    int64_t size_bytes = -1;
    int64_t modified_ns = 0;
    bool operator==(const Stamp&) const = default;
  };

  const std::string path_;
  const size_t bytes_max_;
  Stamp stamp_;
  bool settled_ = false;  // its time of change was long past when it was read
};

}  // namespace annulus
