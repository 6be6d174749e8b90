#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/quoted.h"

namespace annulus {
namespace {

absl::Status Refused(const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("file ", QuotedEnd(path), ": ", why, "; expected a readable regular file"));
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  // A path with a NUL inside would name another file than the one that was asked for.
  if (path.find('\0') != std::string::npos) return Refused(path, "its name holds a NUL");
  // Opening a FIFO must not wait for a writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return Refused(path, strerror(errno));
  MappedFile file;
  absl::Status status;
  struct stat info;
  if (fstat(fd, &info) != 0) {
    status = Refused(path, strerror(errno));
  } else if (!S_ISREG(info.st_mode)) {
    status = Refused(path, "not a regular file");
  } else if (info.st_size > 0) {
    const auto size_bytes = static_cast<size_t>(info.st_size);
    void* data = mmap(nullptr, size_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
      status = Refused(path, strerror(errno));
    } else {
      file.bytes_ = {static_cast<const std::byte*>(data), size_bytes};
    }
  }
  close(fd);
  if (!status.ok()) return status;
  return file;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace annulus
