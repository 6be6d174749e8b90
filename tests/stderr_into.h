// What the process says on stderr, in a file.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <string>

namespace annulus::test {

// For as long as it lives.
struct StderrInto {
  explicit StderrInto(const std::string& path) : kept(dup(STDERR_FILENO)) {
    const int file = open(path.c_str(), O_WRONLY | O_CREAT, 0600);
    dup2(file, STDERR_FILENO);
    close(file);
  }
  ~StderrInto() {
    dup2(kept, STDERR_FILENO);
    close(kept);
  }
  const int kept;
};

}  // namespace annulus::test
