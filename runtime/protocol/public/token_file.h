// TokenFile: the bearer token that a client brings with its calls, from a file that may be written
// anew while the client lives: it is looked at again every second, and a token that cannot be read
// leaves the one before. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/watched_file.h"

namespace annulus {

class TokenFile {
 public:
  // nullptr for an empty path: no token. INVALID_ARGUMENT names token_file and what is wrong with
  // the file, whose content is a line of printable ASCII.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(const std::string& path);

  // "Bearer …", as metadata has it.
  std::string Authorization();

  // How often the token has become another one.
  int64_t version() const { return version_.load(); }
  // Looks at the file at once.
  void Refresh();

 private:
  explicit TokenFile(const std::string& path);
  absl::Status Read();  // with mutex_, but for the first time

  std::mutex mutex_;  // all that follows
  WatchedFile file_;
  std::string authorization_;
  std::atomic<int64_t> version_ = 0;  // changed under mutex_
  absl::Time look_at_ = absl::InfinitePast();
};

}  // namespace annulus
