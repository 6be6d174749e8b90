// A pattern as a picture: one square a KV head, a row a query, a column a key. Pure function.
#pragma once

#include <string>

#include "attention/pattern.h"

namespace annulus {

// The allowed pairs of the first `tokens` tokens as SVG: the heads that differ side by side.
std::string PatternPicture(const Pattern& pattern, int tokens);

}  // namespace annulus
