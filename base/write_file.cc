#include "base/write_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/quoted.h"

namespace annulus {
namespace {

absl::Status Refused(const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("file ", Quoted(path), ": ", why, ", expected a path to write a file to"));
}

}  // namespace

absl::Status CheckWritable(const std::string& path) {
  if (path.find('\0') != std::string::npos) return Refused(path, "its name holds a NUL");
  struct stat info;
  if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return Refused(path, "not a regular file");
  }
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  if (path.size() == slash + 1) return Refused(path, "it has no file name");
  if (access(folder.c_str(), W_OK | X_OK) != 0) return Refused(path, strerror(errno));
  return absl::OkStatus();
}

absl::Status WriteFile(const std::string& path, std::initializer_list<absl::string_view> pieces) {
  const std::string partial = absl::StrCat(path, ".partial");
  std::FILE* file = std::fopen(partial.c_str(), "wb");
  bool good = file != nullptr;
  for (const absl::string_view piece : pieces) {
    good = good && std::fwrite(piece.data(), 1, piece.size(), file) == piece.size();
  }
  if (file != nullptr) good = std::fclose(file) == 0 && good;
  if (good && std::rename(partial.c_str(), path.c_str()) == 0) return absl::OkStatus();
  const std::string why = strerror(errno);
  std::remove(partial.c_str());
  return absl::UnavailableError(absl::StrCat("file ", Quoted(path), ": ", why));
}

}  // namespace annulus
