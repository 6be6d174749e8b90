// What a worker does for the trips of a column pass.
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "runtime/engine/column_pass.h"
#include "runtime/worker/work_runner.h"

namespace annulus {

absl::Status WorkRunner::RunColumnTrip(const WorkerTask& task, const wire::WorkItem& item,
                                       const KvStore::Shard& shard, const Buffer& asked,
                                       BatchItem* to) {
  const ContextSpec& spec = shard.spec;
  if (item.layer >= spec.layers || spec.kv_efficient) {
    return absl::InvalidArgumentError(
        "column_trip: of a track's layer or a context that is kv_efficient; expected neither");
  }
  const ColumnPass pass(spec, shard.layout(item.layer, item.kv_tokens),
                        {item.q_start, item.q_start + item.q_tokens}, item.kv_tokens);
  ANNULUS_RETURN_IF_ERROR(pass.Check());
  const size_t expected = pass.AskedBytes(shard.rank, *item.column_trip);
  if (asked.size() != expected) {
    return absl::DataLossError(
        absl::StrCat("column pass of an item: ", asked.size(), " bytes; expected ", expected));
  }
  ANNULUS_ASSIGN_OR_RETURN(const SelectKeys keys,
                           store_.RowsToSelect(item.storage_id, item.layer, item.kv_tokens));
  const Loops loops{backend_.pool(), TurnOf(task, item), task.cancel.get()};
  switch (*item.column_trip) {
    case ColumnTrip::kSums: {
      ANNULUS_ASSIGN_OR_RETURN(to->answer,
                               pass.Sums(shard.rank, asked.data(), item.scale, keys, loops));
      return absl::OkStatus();
    }
    case ColumnTrip::kVotes: {
      ANNULUS_ASSIGN_OR_RETURN(to->answer,
                               pass.Votes(shard.rank, asked.data(), item.scale, keys, loops));
      return absl::OkStatus();
    }
    case ColumnTrip::kDiagonals: {
      ANNULUS_RETURN_IF_ERROR(pass.CheckWeights(ColumnTrip::kDiagonals));
      ANNULUS_ASSIGN_OR_RETURN(to->answer,
                               pass.Diagonals(shard.rank, asked.data(), item.scale, keys, loops));
      return absl::OkStatus();
    }
    case ColumnTrip::kSpans: {
      ANNULUS_RETURN_IF_ERROR(pass.CheckWeights(ColumnTrip::kSpans));
      ANNULUS_ASSIGN_OR_RETURN(to->answer,
                               pass.Spans(shard.rank, asked.data(), item.scale, keys, loops));
      return absl::OkStatus();
    }
    case ColumnTrip::kRows: {
      // A page that was damaged here must not become another context's.
      ANNULUS_RETURN_IF_ERROR(store_.Verify(item.storage_id, item.layer, {0, spec.kv_heads},
                                            BlockSet::FromBlocks(pass.Blocks(shard.rank))));
      ANNULUS_ASSIGN_OR_RETURN(to->answer, pass.KeptRows(shard.rank, *item.lists[0].data, keys));
      return absl::OkStatus();
    }
  }
  return absl::InternalError("column_trip: none that is known");
}

}  // namespace annulus
