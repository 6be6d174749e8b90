// What an answer that lists contexts may take of one message. Pure functions.
#pragma once

#include "annulus/types.h"
#include "runtime/service/calls.h"

namespace annulus {

// Leaves out the last contexts of those that together take more than 32 MiB, half of what clients
// accept: of a list, whose caller asks for more after the last one, and of a status, which counts
// them.
void FitMessage(ContextList* list);
void FitMessage(ClusterStatus* status);

}  // namespace annulus
