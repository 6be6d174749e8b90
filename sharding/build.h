// What the plan builders share; private to sharding. Pure functions over immutable values.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "sharding/plan.h"
#include "sharding/row_table.h"

namespace annulus {

// Whether the plan of this kind depends on what the pattern reads (and its builder needs rows).
bool NeedsRows(PlanKind kind, const Problem& problem);

// One builder per family. See design of each in its file. `rows` may be null unless NeedsRows.
Plan BuildRing(PlanKind kind, const Problem& problem, const RowTable* rows);
// Once `stop` has stopped, what comes of it has no meaning.
Plan BuildPassQ(const Problem& problem, const RowTable& rows, const Stop& stop = {});

// The query blocks cut over `groups` so that the work balances: as the home partition cuts all
// tokens when every token is a query (then nothing moves), else its kind over the query blocks
// alone, since under causal patterns the tail's rows cost nearly the same.
Partition RowPartition(const Problem& problem, PartitionSpec spec, int groups);

// Heads that share a set of blocks.
struct HeadBlocks {
  HeadRange heads;
  BlockSet blocks;
};
// blocks_of(head) for each head of `heads`, neighbours with the same blocks in one entry; heads
// with no blocks are left out.
std::vector<HeadBlocks> GroupHeads(HeadRange heads, absl::FunctionRef<BlockSet(int)> blocks_of);

// What all group-casts of a problem have in common, whatever their stages. `problem` must outlive
// it.
class GroupCast {
 public:
  // Once `stop` has stopped, what comes of it has no meaning.
  GroupCast(const Problem& problem, const RowTable& rows, ThreadPool& pool, const Stop& stop = {});

  Plan Build(int stages) const;

 private:
  struct Rank {
    std::vector<HeadBlocks> rows;  // that it computes, by KV head
    std::vector<Transfer> kv;      // that come to it
  };
  std::vector<HeadRange> Parts(int count) const;
  // What rank `index` does for some KV heads, in three rounds. `hides`: it computes while pages
  // come.
  void AddPart(int index, HeadRange heads, bool hides, Round* cast, Round* rest, Round* home) const;

  const Problem& problem_;
  std::vector<Rank> ranks_;
};

// Appends the transfers that bring `rows` of `heads` from home to `rank` (kQuery), or back home
// (kPartial). Rows at home there already do not move.
void MoveRows(const Problem& problem, Transfer::Kind kind, int rank, HeadRange heads,
              const BlockSet& rows, std::vector<Transfer>* transfers);

// Appends the transfers that bring `wanted` KV to `rank` from those that hold it before the plan;
// what `rank` itself holds does not move.
void FetchKv(const Problem& problem, int rank, const std::vector<HeadBlocks>& wanted,
             std::vector<Transfer>* transfers);

// `wanted` without what `rank` holds before the plan.
std::vector<HeadBlocks> NotHeld(const Problem& problem, int rank,
                                const std::vector<HeadBlocks>& wanted);

}  // namespace annulus
