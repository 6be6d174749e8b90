// What the computes of a plan do and read, counted over blocks and never over tokens or pairs: the
// work half of the cost model. Pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "sharding/plan.h"
#include "sharding/row_table.h"

namespace annulus {

// Of one compute, or of several in sum.
struct ComputeLoad {
  // (query head, query, key) pairs: the existing ones of every 64×64 cell with an allowed pair.
  int64_t work_pairs = 0;
  // Tokens of the pages that some row reads; a page of another KV head counts again.
  int64_t tokens_read = 0;
  // Query rows × query heads whose partials it merges into. 0, as launches, where nothing is read.
  int64_t partial_rows = 0;
  int launches = 0;

  ComputeLoad& operator+=(const ComputeLoad& other) {
    work_pairs += other.work_pairs;
    tokens_read += other.tokens_read;
    partial_rows += other.partial_rows;
    launches += other.launches;
    return *this;
  }
};

// (query, key) pairs of one query head of a class under these rows, as work_pairs: of one query
// block in one step for each run that it sees, of many by bands where the class has them.
int64_t RowWork(const RowTable& rows, int class_index, int64_t q_block);
int64_t WorkOf(const RowTable& rows, int class_index, const BlockSet& q_blocks);

// By step, then by compute, in the plan's order.
using PlanLoads = std::vector<std::vector<ComputeLoad>>;

// Uses all cores for plans that are worth it. Costs one pass over the context's blocks for each
// distinct set of rows and class of heads, and next to nothing for each further compute on these
// rows: a ring of 1,024 ranks has 10^6 computes and takes seconds.
PlanLoads ComputeLoads(const Plan& plan);

// Of several plans of one problem, whose row table is given; of no meaning once `stop` has stopped.
std::vector<PlanLoads> ComputeLoads(std::span<const Plan* const> plans, const RowTable& rows,
                                    ThreadPool& pool, const Stop& stop = {});

}  // namespace annulus
