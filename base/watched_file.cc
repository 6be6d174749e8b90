#include "base/watched_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/quoted.h"
#include "base/unique_fd.h"

namespace annulus {
namespace {

// File systems note times no finer than this; two changes within it may look like one.
constexpr absl::Duration kTimeGrain = absl::Seconds(2);

int64_t ModifiedNs(const struct stat& info) {
  return absl::ToUnixNanos(absl::TimeFromTimespec(info.st_mtim));
}

}  // namespace

absl::StatusOr<std::string> WatchedFile::Read() {
  const auto refused = [this](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("file ", QuotedEnd(path_), ": ", why,
                                                   "; expected a readable file of at most ",
                                                   bytes_max_, " bytes"));
  };
  stamp_ = Stamp();
  if (path_.find('\0') != std::string::npos) return refused("its name holds a NUL");
  // Opening a FIFO must not wait for a writer.
  const UniqueFd fd(open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info;
  if (!fd.is_open() || fstat(fd.get(), &info) != 0) return refused(strerror(errno));
  if (!S_ISREG(info.st_mode)) return refused("not a regular file");
  std::string bytes(bytes_max_ + 1, '\0');
  size_t size = 0;
  while (size < bytes.size()) {
    const ssize_t more = read(fd.get(), bytes.data() + size, bytes.size() - size);
    if (more < 0 && errno == EINTR) continue;
    if (more < 0) return refused(strerror(errno));
    if (more == 0) break;
    size += static_cast<size_t>(more);
  }
  if (size > bytes_max_) return refused("too large");
  bytes.resize(size);
  stamp_ = {info.st_dev, info.st_ino, info.st_size, ModifiedNs(info)};
  settled_ = absl::Now() - absl::FromUnixNanos(stamp_.modified_ns) > kTimeGrain;
  return bytes;
}

bool WatchedFile::MayHaveChanged() const {
  struct stat info;
  if (!settled_ || stat(path_.c_str(), &info) != 0) return true;
  return stamp_ != Stamp{info.st_dev, info.st_ino, info.st_size, ModifiedNs(info)};
}

}  // namespace annulus
