#include "runtime/engine/columns_local.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "runtime/engine/column_pass.h"

namespace annulus {
namespace {

// Of rows that are stored in this dtype.
ContextSpec SpecOf(const TensorView& q, const TensorView& k, const TensorView& v) {
  ContextSpec spec;
  spec.heads = static_cast<int>(q.heads);
  spec.kv_heads = static_cast<int>(k.heads);
  spec.head_dim = static_cast<int>(k.dim);
  spec.v_head_dim = static_cast<int>(v.dim);
  spec.dtype = k.dtype;
  return spec;
}

absl::StatusOr<Buffer> AnswerOf(const ColumnPass& pass, ColumnTrip trip, int rank,
                                const Buffer& asked, float scale, const ColumnPass::Merge& merge,
                                const SelectKeys& keys, const Loops& loops) {
  switch (trip) {
    case ColumnTrip::kSums:
      return pass.Sums(rank, asked.data(), scale, keys, loops);
    case ColumnTrip::kVotes:
      return pass.Votes(rank, asked.data(), scale, keys, loops);
    case ColumnTrip::kRows:
      return pass.KeptRows(rank, merge.kept(), keys);
    case ColumnTrip::kDiagonals:
      return pass.Diagonals(rank, asked.data(), scale, keys, loops);
    case ColumnTrip::kSpans:
      return pass.Spans(rank, asked.data(), scale, keys, loops);
  }
  return absl::InternalError("column_trip: none that is known");
}

absl::Status RunTrip(const ColumnPass& pass, ColumnTrip trip, int world, const TensorView& q,
                     float scale, const SelectKeys& keys, const Loops& loops,
                     ColumnPass::Merge* merge) {
  for (int rank = 0; rank < world; ++rank) {
    if (!pass.TakesPart(rank)) continue;
    ANNULUS_ASSIGN_OR_RETURN(
        const Buffer answer,
        AnswerOf(pass, trip, rank, merge->Ask(rank, trip, q), scale, *merge, keys, loops));
    ANNULUS_RETURN_IF_ERROR(merge->Add(rank, trip, answer.span()));
  }
  return trip == ColumnTrip::kSums ? merge->EndSums() : absl::OkStatus();
}

}  // namespace

absl::StatusOr<CompressedRows> CompressLocally(const TensorView& q, int64_t q_begin,
                                               const TensorView& k, const TensorView& v,
                                               float scale, const KeepRule& rule,
                                               ThreadPool* pool) {
  const ContextSpec spec = SpecOf(q, k, v);
  const Layout layout =
      Layout::Tokens(/*world=*/1, spec.heads, spec.kv_heads, spec.partition, BlocksOf(k.tokens));
  const ColumnPass pass(spec, layout, {q_begin, q_begin + q.tokens}, k.tokens);
  ANNULUS_RETURN_IF_ERROR(pass.Check());
  const KvTable table = KvTable::FromTensors(k, v);
  ColumnPass::Merge merge(pass);
  for (const ColumnTrip trip : kCompressTrips) {
    ANNULUS_RETURN_IF_ERROR(
        RunTrip(pass, trip, layout.world(), q, scale, {.kv = &table}, {pool}, &merge));
    if (trip == ColumnTrip::kVotes) merge.Choose(rule);
  }
  KeyListData kept = merge.kept();
  return CompressedRows{std::move(merge).TakeK(), std::move(merge).TakeV(), std::move(kept)};
}

absl::StatusOr<KeyListData> PickLocally(const ColumnSelector& selector, const Layout& layout,
                                        const TensorView& q, int64_t q_begin, const TensorView& k,
                                        float scale, const Loops& loops) {
  const int64_t rows = std::min(q.tokens, selector.last_queries());
  const TensorView last = q.Tokens(q.tokens - rows, rows);
  const int64_t q_end = q_begin + q.tokens;
  ANNULUS_RETURN_IF_ERROR(selector.CheckCall({q_begin, q_end}, static_cast<int>(q.heads)));
  const ColumnPass pass(SpecOf(q, k, k), layout, {q_end - rows, q_end}, k.tokens);
  ANNULUS_RETURN_IF_ERROR(pass.Check());
  ANNULUS_RETURN_IF_ERROR(pass.CheckWeights(selector.trip()));
  const KvTable table = KvTable::FromTensors(k, k);
  ColumnPass::Merge merge(pass);
  for (const ColumnTrip trip : {ColumnTrip::kSums, selector.trip()}) {
    ANNULUS_RETURN_IF_ERROR(
        RunTrip(pass, trip, layout.world(), last, scale, {.kv = &table}, loops, &merge));
  }
  return merge.Pick(selector, q, scale);
}

}  // namespace annulus
