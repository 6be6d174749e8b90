// Where a context's KV lies, told briefly: for pages. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "runtime/coordinator/core/contexts.h"

namespace annulus {

// Of one context.
struct ContextPlaces {
  ContextId context = 0;
  std::map<WorkerId, int64_t> kv_bytes;  // by holder, copies among them
  // The context cut into equal parts, at most kPlacesParts: who answers for the first KV head at
  // the beginning of each; 0: nobody is there.
  std::vector<WorkerId> parts;
};
inline constexpr int64_t kPlacesParts = 48;

ContextPlaces PlacesOf(const Context& context);

}  // namespace annulus
