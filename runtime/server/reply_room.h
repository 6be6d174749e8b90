// What an answer that lists contexts may take of one message. Pure functions.
#pragma once

#include <string>

#include "annulus/types.h"
#include "runtime/service/calls.h"

namespace annulus {

// The message of such an answer. The last contexts of those that together take more than 32 MiB,
// half of what clients accept, are left out: of a list, whose caller asks for more after the last
// one, and of a status, which counts them.
std::string FittedBytesOf(ContextList list);
std::string FittedBytesOf(ClusterStatus status);

}  // namespace annulus
