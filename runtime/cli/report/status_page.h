// The page /status: what people look at in a browser. HTML without scripts; whatever others have
// said is escaped. Pure functions.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "annulus/types.h"

namespace annulus {

// Of a cluster: its workers, with bars of their KV, and its contexts, the first 1,000.
std::string StatusPage(const ClusterStatus& status);
// Of anything that has names and values.
std::string StatusPage(absl::string_view title,
                       const std::vector<std::pair<std::string, std::string>>& rows);

}  // namespace annulus
