// Whether a call brings the list that a word of a pattern stands for.
#pragma once

#include "absl/strings/string_view.h"

namespace annulus {

// Whether one of `lists`, values with a name (CallList, NamedList and what is sent of them), stands
// for list(name).
template <typename Lists>
bool HasList(const Lists& lists, absl::string_view name) {
  for (const auto& list : lists) {
    if (list.name == name) return true;
  }
  return false;
}

}  // namespace annulus
