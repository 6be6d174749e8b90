// Who computes which query rows, so that work balances at the least cost in bytes; private to
// sharding. Pure functions over immutable values.
//
// Rows start at their homes. While a rank has more than 1.05 of the mean work, it gives rows of one
// KV head (with the query heads that share it) to a rank with room: of all ranks, heads and
// stretches of rows that would do, the ones that cost the fewest bytes for the work that moves. A
// move costs the rows' queries and answers, and the pages that the receiver must read for them
// beyond those that it holds or reads already. So rows move in stretches that read the same pages,
// heads stay apart, and what is balanced already does not move at all.
#pragma once

#include <vector>

#include "sharding/plan.h"
#include "sharding/row_table.h"

namespace annulus {

inline constexpr double kImbalanceMax = 1.05;  // max/mean of work_pairs

// By rank, by KV head: the query blocks computed there. Every query block is computed under every
// head by exactly one rank.
using Assignment = std::vector<std::vector<BlockSet>>;

// Above kImbalanceMax only if no rank has room for another query block of one head, or if `stop`
// has stopped.
Assignment AssignRows(const Problem& problem, const RowTable& rows, const Stop& stop = {});

}  // namespace annulus
