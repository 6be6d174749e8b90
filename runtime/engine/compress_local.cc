#include "runtime/engine/compress_local.h"

#include <utility>

#include "base/status.h"
#include "runtime/engine/column_pass.h"

namespace annulus {
namespace {

constexpr int kRank = 0;  // holds everything

absl::StatusOr<Buffer> AnswerOf(const ColumnPass& pass, ColumnTrip trip, const Buffer& asked,
                                float scale, const ColumnPass::Merge& merge, const SelectKeys& keys,
                                const Loops& loops) {
  switch (trip) {
    case ColumnTrip::kSums:
      return pass.Sums(kRank, asked.data(), scale, keys, loops);
    case ColumnTrip::kVotes:
      return pass.Votes(kRank, asked.data(), scale, keys, loops);
    case ColumnTrip::kRows:
      return pass.KeptRows(kRank, merge.kept(), keys);
  }
  return absl::InternalError("column_trip: none that is known");
}

}  // namespace

absl::StatusOr<CompressedRows> CompressLocally(const TensorView& q, int64_t q_begin,
                                               const TensorView& k, const TensorView& v,
                                               float scale, const KeepRule& rule,
                                               ThreadPool* pool) {
  ContextSpec spec;
  spec.heads = static_cast<int>(q.heads);
  spec.kv_heads = static_cast<int>(k.heads);
  spec.head_dim = static_cast<int>(k.dim);
  spec.v_head_dim = static_cast<int>(v.dim);
  spec.dtype = k.dtype;
  const Layout layout =
      Layout::Tokens(/*world=*/1, spec.heads, spec.kv_heads, spec.partition, BlocksOf(k.tokens));
  const ColumnPass pass(spec, layout, {q_begin, q_begin + q.tokens}, k.tokens);
  ANNULUS_RETURN_IF_ERROR(pass.Check());
  const KvTable table = KvTable::FromTensors(k, v);
  ColumnPass::Merge merge(pass);
  for (const ColumnTrip trip : kColumnTrips) {
    ANNULUS_ASSIGN_OR_RETURN(const Buffer answer, AnswerOf(pass, trip, merge.Ask(kRank, trip, q),
                                                           scale, merge, {.kv = &table}, {pool}));
    ANNULUS_RETURN_IF_ERROR(merge.Add(kRank, trip, answer.span()));
    if (trip == ColumnTrip::kSums) ANNULUS_RETURN_IF_ERROR(merge.EndSums());
    if (trip == ColumnTrip::kVotes) merge.Choose(rule);
  }
  KeyListData kept = merge.kept();
  return CompressedRows{std::move(merge).TakeK(), std::move(merge).TakeV(), std::move(kept)};
}

}  // namespace annulus
