#include "annulus/key_list.h"
#include "base/secret.h"

namespace annulus {

ListHandle NewListHandle() {
  return {.high = RandomSecret(), .low = RandomSecret()};
}

}  // namespace annulus
