// Files written whole or not at all. Thread-safe functions.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace annulus {

// Whether a regular file may be written at `path`: asked before long work, so that a typing error
// does not cost its result. INVALID_ARGUMENT names the path and what the system said.
absl::Status CheckWritable(const std::string& path);

// A file that a program was asked to write or to read.
struct NamedPath {
  std::string name;  // "--out"
  std::optional<std::string> path;
};

// CheckWritable for each output, and that no two of them, and no output and input, are one file:
// by path, symlink or hard link. INVALID_ARGUMENT names the two.
absl::Status CheckOutputs(const std::vector<NamedPath>& outputs,
                          const std::vector<NamedPath>& inputs);

// Makes `path` (or what it links to) a file of the pieces, one after the other. Written beside it
// and then renamed, so that what stands at `path` is always whole. UNAVAILABLE names the path and
// what the system said.
absl::Status WriteFile(const std::string& path, std::initializer_list<absl::string_view> pieces);

}  // namespace annulus
