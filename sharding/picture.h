// A picture of a plan: its block map (query blocks × KV blocks) coloured by the worker that
// computes each part. Pure function.
#pragma once

#include <string>

#include "sharding/plan.h"
#include "sharding/planner.h"

namespace annulus {

// An SVG document: for up to four KV heads that see different things, the block map, drawn in at
// most 256×256 cells; a deeper colour is a denser cell. Beside it each worker's share of the work
// and its bytes. `cost` is of `plan`, `size` of its problem. Costs a second at most at any size: of
// the query blocks that share a row of cells it looks at four.
std::string BlockMapSvg(const Plan& plan, const PlanCost& cost, const ProblemSize& size);

}  // namespace annulus
