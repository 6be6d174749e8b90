// The format of --config: lines of
//   # a comment            [attend]            kv-heads = 4            pattern = "s2(64,4,16)"
// A value reaches to the end of its line; quotes around the whole of it are taken off. Lines before
// the first section are for whichever command reads the file, those of a section for the command it
// names. A pure function. (CLI11's own reader cuts values at commas, which patterns are full of.)
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace annulus {

struct ConfigEntry {
  std::string section;  // empty before the first one
  std::string key;
  std::string value;
};

// INVALID_ARGUMENT names the line, what it holds and what was expected.
absl::StatusOr<std::vector<ConfigEntry>> ParseConfig(absl::string_view text);

}  // namespace annulus
