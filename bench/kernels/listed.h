// Lists that benchmarks bring: what another pattern shows, or blocks by chance. Pure functions.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"
#include "attention/pattern.h"

namespace annulus {

// `pattern`, whose list(x) shows each block of the queries `q`, the last of a context, and each KV
// head so many blocks:
// those that the pattern `listed` shows; where it is "tenth", a tenth of those on and below the
// diagonal; where it is a number, so many of all. Both are drawn for each by chance. Where it is
// "queries:N" the list is of each query and query head instead, of N blocks of 512 tokens before
// its own, by chance, and its own.
Pattern BindListed(const Pattern& pattern, absl::string_view listed, int heads, TokenRange q);

}  // namespace annulus
