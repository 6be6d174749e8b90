#include "base/write_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/quoted.h"
#include "base/status.h"

namespace annulus {
namespace {

namespace fs = std::filesystem;

absl::Status Refused(const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("file ", QuotedEnd(path), ": ", why, "; expected a path to write a file to"));
}

// Where a file written at `path` lies: beyond its symlinks, also if that does not exist yet.
std::string Resolved(const std::string& path) {
  constexpr int kLinksMax = 40;  // as the system
  fs::path at = path;
  std::error_code error;
  for (int i = 0; i < kLinksMax && fs::is_symlink(fs::symlink_status(at, error)); ++i) {
    const fs::path target = fs::read_symlink(at, error);
    if (error) break;
    at = target.is_absolute() ? target : at.parent_path() / target;
  }
  return at.string();
}

// A name beside `target` that nobody has.
std::string PartialPath(const std::string& target) {
  static std::atomic<int> count = 0;
  return absl::StrCat(target, ".partial-", getpid(), "-", count++);
}

bool IsSameFile(const std::string& a, const std::string& b) {
  struct stat info_a, info_b;
  if (stat(a.c_str(), &info_a) == 0 && stat(b.c_str(), &info_b) == 0) {
    return info_a.st_dev == info_b.st_dev && info_a.st_ino == info_b.st_ino;
  }
  std::error_code error_a, error_b;
  const fs::path full_a = fs::weakly_canonical(Resolved(a), error_a);
  const fs::path full_b = fs::weakly_canonical(Resolved(b), error_b);
  return !error_a && !error_b && full_a == full_b;
}

bool WriteAll(int fd, absl::string_view piece) {
  constexpr size_t kAtOnce = size_t{1} << 30;  // a call takes less than 2 GiB
  while (!piece.empty()) {
    const ssize_t written = write(fd, piece.data(), std::min(piece.size(), kAtOnce));
    if (written < 0 && errno != EINTR) return false;
    if (written > 0) piece.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace

absl::Status CheckWritable(const std::string& path) {
  if (path.find('\0') != std::string::npos) return Refused(path, "its name holds a NUL");
  const std::string target = Resolved(path);
  const size_t slash = target.rfind('/');
  if (target.size() == slash + 1) return Refused(path, "it has no file name");
  struct stat info;
  if (stat(target.c_str(), &info) == 0) {
    if (!S_ISREG(info.st_mode)) return Refused(path, "not a regular file");
    if (access(target.c_str(), W_OK) != 0) return Refused(path, strerror(errno));
  } else if (errno != ENOENT) {
    return Refused(path, strerror(errno));
  }
  const std::string folder = slash == std::string::npos ? "." : target.substr(0, slash + 1);
  if (access(folder.c_str(), W_OK | X_OK) != 0) return Refused(path, strerror(errno));
  // A name that is too long, once it is longer.
  if (stat(PartialPath(target).c_str(), &info) != 0 && errno != ENOENT) {
    return Refused(path, strerror(errno));
  }
  return absl::OkStatus();
}

absl::Status CheckOutputs(const std::vector<NamedPath>& outputs,
                          const std::vector<NamedPath>& inputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    const NamedPath& output = outputs[i];
    if (!output.path.has_value()) continue;
    ANNULUS_RETURN_IF_ERROR(CheckWritable(*output.path));
    std::vector<NamedPath> others(outputs.begin(), outputs.begin() + static_cast<int64_t>(i));
    others.insert(others.end(), inputs.begin(), inputs.end());
    for (const NamedPath& other : others) {
      if (!other.path.has_value() || !IsSameFile(*output.path, *other.path)) continue;
      return absl::InvalidArgumentError(absl::StrCat(output.name, ": ", QuotedEnd(*output.path),
                                                     ", the file of ", other.name,
                                                     "; expected another one"));
    }
  }
  return absl::OkStatus();
}

absl::Status WriteFile(const std::string& path, std::initializer_list<absl::string_view> pieces) {
  const std::string target = Resolved(path);
  const std::string partial = PartialPath(target);
  const int fd = open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  bool good = fd >= 0;
  for (const absl::string_view piece : pieces) good = good && WriteAll(fd, piece);
  int why = errno;
  if (fd >= 0 && close(fd) != 0 && good) {
    good = false;
    why = errno;
  }
  if (good) {
    if (std::rename(partial.c_str(), target.c_str()) == 0) return absl::OkStatus();
    why = errno;
  }
  if (fd >= 0) unlink(partial.c_str());
  return absl::UnavailableError(absl::StrCat("file ", QuotedEnd(path), ": ", strerror(why)));
}

}  // namespace annulus
