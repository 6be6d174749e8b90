// What this machine attains, measured by the code that plans will run: the figures of the cost
// model. Takes about a second. Thread-safe, but what runs beside it is measured too.
#pragma once

#include "absl/status/statusor.h"
#include "attention/backend.h"
#include "comm/exchange.h"
#include "sharding/cluster.h"

namespace annulus {

// The figures of one worker that has the whole machine, or a GPU, to itself; SharedBy gives those
// of several. Links between nodes are taken to be those inside: there is but one node.
//   flops, flops_f32     causal attention, head_dim 128
//   read_bytes_per_s     one query over a long context
//   launch_s             the smallest attention there is
//   inside_…             two ranks of a local exchange that send to each other at once, in sum
//                        (with a GPU: from its memory and back into it)
// Errors are those of the backend and the exchange.
absl::StatusOr<ClusterModel> MeasureMachine(Backend& backend);

// Measures an exchange between GPUs, whose links are nobody else's: every rank sends to the next
// one while the one before sends to it. Collective; each rank gets the figures that it saw.
absl::StatusOr<ClusterModel> MeasureLinks(ClusterModel machine, Exchange& exchange,
                                          MemorySpace& space);

}  // namespace annulus
