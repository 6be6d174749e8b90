#include "runtime/identity/caller.h"

#include <functional>

namespace annulus {

uint64_t NumberOf(const Caller& caller) {
  return std::hash<std::string>()(caller.tenant.empty() ? caller.client : caller.tenant);
}

}  // namespace annulus
