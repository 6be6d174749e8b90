// NcclExchange: an exchange of GPU memory over NCCL, one GPU a rank. NCCL alone has no sizes that
// are compared, no word from a rank that gives up, and waits for a dead one without end; so each
// exchange has a companion of host memory among the same ranks (over MPI, UCX or threads), its
// control: over it go NCCL's id, the sizes of each group before it starts, and aborts. A thread of
// its own starts groups when both sides are there and looks after them. NCCL's kernels run in a
// stream of their own beside attention; Post returns once they are queued, or after 2 ms, so that
// attention that is launched next does not keep them from the GPU.
//
// Groups run in order (Capabilities::groups_in_order). A rank that dies, or NCCL's failure, fails
// the whole exchange.
// Thread rule: as exchange.h says.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "comm/exchange.h"

namespace annulus {

// Collective: all ranks of `control` open together, each on the GPU that is its thread's current
// one; no two may share a GPU. DEADLINE_EXCEEDED if not all are there in time, UNAVAILABLE with
// what NCCL said.
absl::StatusOr<std::unique_ptr<Exchange>> OpenNcclExchange(std::unique_ptr<Exchange> control,
                                                           absl::Time deadline);

}  // namespace annulus
