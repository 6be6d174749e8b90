// Decode steps of contexts that are spread over many workers: what of them reaches the coordinator,
// and what it costs there.
#pragma once

#include "absl/status/statusor.h"
#include "bench/report/columns.h"

namespace annulus {

// Steps of `contexts` contexts (32/8 heads, d 128, bf16) over so many workers, all in this process,
// each of which holds as much of every context. The coordinator's time is that of the processor in
// the thread that calls it, its share of the transport included.
absl::StatusOr<Columns> MeasureSpread(int workers, int contexts, int rounds);

}  // namespace annulus
