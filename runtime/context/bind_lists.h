// The lists that a call brings for its pattern. Pure function.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "annulus/key_list.h"
#include "attention/pattern.h"

namespace annulus {

// `pattern` with these lists, for `heads` query heads. INVALID_ARGUMENT names the list, the field,
// its value and what was expected.
absl::StatusOr<Pattern> BindLists(const Pattern& pattern, const std::vector<CallList>& lists,
                                  int heads);

}  // namespace annulus
