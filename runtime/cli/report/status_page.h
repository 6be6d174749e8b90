// The page /status: what people look at in a browser. HTML without scripts; whatever others have
// said is escaped. Pure functions.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "annulus/types.h"
#include "runtime/coordinator/cluster_view.h"

namespace annulus {

// Contexts that are shown.
inline constexpr size_t kContextsShownMax = 1000;
// Those whose places are: they are read while calls wait.
inline constexpr size_t kPlacesShownMax = 200;

// Of a cluster: its workers, with bars of their KV, and its contexts, with a bar each of who holds
// their parts.
std::string StatusPage(const ClusterStatus& status, const ClusterView& view);
// Of anything that has names and values.
std::string StatusPage(absl::string_view title,
                       const std::vector<std::pair<std::string, std::string>>& rows);

}  // namespace annulus
