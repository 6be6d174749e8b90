// Environment variables that were meant as options and are none. Pure functions, thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace annulus {

// What the variables of options begin with.
inline constexpr char kVariablePrefix[] = "ANNULUS_";

// Names of variables in brackets, "[ANNULUS_KV_HEADS]", as help texts have them.
std::vector<std::string> VariablesIn(absl::string_view help);

// Whether Kubernetes sets variables of this name for a Service: it ends in _SERVICE_HOST,
// _SERVICE_PORT or _PORT, or one of the latter two and a port's name follow.
bool IsOfService(absl::string_view name);

// Of `known`, the one that the fewest letters put in, taken out or replaced make of `name`; the
// first of several. REQUIRES: known is not empty.
std::string NearestTo(absl::string_view name, const std::vector<std::string>& known);

}  // namespace annulus
