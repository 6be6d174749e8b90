// Text from outside, made fit for a message: one line, printable, of bounded length. Thread-safe.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace annulus {

// `text` in double quotes, escaped, and cut after `bytes_max` bytes (then "…" follows the quotes).
std::string Quoted(absl::string_view text, size_t bytes_max = 80);

// The same for a path or a name, whose end says most: what is cut is its beginning.
std::string QuotedEnd(absl::string_view text, size_t bytes_max = 200);

}  // namespace annulus
