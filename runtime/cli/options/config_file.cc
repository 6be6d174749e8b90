#include "runtime/cli/options/config_file.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/quoted.h"

namespace annulus {
namespace {

bool IsName(absl::string_view text) {
  for (const char c : text) {
    if (!absl::ascii_islower(static_cast<unsigned char>(c)) &&
        !absl::ascii_isdigit(static_cast<unsigned char>(c)) && c != '-') {
      return false;
    }
  }
  return !text.empty();
}

absl::string_view WithoutQuotes(absl::string_view value) {
  if (value.size() < 2 || value.front() != value.back()) return value;
  if (value.front() != '"' && value.front() != '\'') return value;
  return value.substr(1, value.size() - 2);
}

}  // namespace

absl::StatusOr<std::vector<ConfigEntry>> ParseConfig(absl::string_view text) {
  std::vector<ConfigEntry> entries;
  std::string section;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    if (line.front() == '[' && line.back() == ']' && IsName(line.substr(1, line.size() - 2))) {
      section = std::string(line.substr(1, line.size() - 2));
      continue;
    }
    const size_t equals = line.find('=');
    const absl::string_view key = absl::StripAsciiWhitespace(line.substr(0, equals));
    if (equals == absl::string_view::npos || !IsName(key)) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": ", Quoted(line), "; expected [command] or key = value"));
    }
    const absl::string_view value = absl::StripAsciiWhitespace(line.substr(equals + 1));
    entries.push_back({section, std::string(key), std::string(WithoutQuotes(value))});
  }
  return entries;
}

}  // namespace annulus
