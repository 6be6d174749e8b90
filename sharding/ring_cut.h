// What each rank computes in a plan of the ring family; private to sharding. Pure functions.
//
// Mostly a rank serves the query heads of its head group, all cut evenly, for the rows of its token
// group. Where heads differ so much that this leaves a rank with more than 1.05 of the mean work,
// heads go to head groups by weight (sharding/assign_heads.h); where rows differ too, the rows of a
// head group are cut zigzag by its work.
#pragma once

#include <vector>

#include "sharding/build.h"
#include "sharding/layout.h"

namespace annulus {

// By rank: query heads and the query blocks it computes under them. Every query block is with
// exactly one rank under every query head.
using RingCut = std::vector<std::vector<HeadBlocks>>;

// `target` has the mesh, and where the KV lies by its heads already (`heads_lie`) the heads too.
// Without `rows` nothing is weighed.
RingCut CutRing(const Problem& problem, const Layout& target, bool heads_lie, PartitionSpec spec,
                const RowTable* rows);

}  // namespace annulus
