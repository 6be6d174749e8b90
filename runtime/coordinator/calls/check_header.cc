#include "runtime/coordinator/calls/check_header.h"

#include <algorithm>

#include "attention/finish.h"
#include "attention/memory_space.h"
#include "base/status.h"
#include "runtime/context/check_tensor.h"
#include "runtime/coordinator/calls/index_item.h"

namespace annulus {

absl::StatusOr<CallSize> CheckHeader(const ShardMap& map, const AppendRequest& header,
                                     CallPlanner&) {
  ANNULUS_RETURN_IF_ERROR(CheckKvShapes(map.SpecOf(header.layer), header.k, header.v));
  return CallSize();
}

absl::StatusOr<CallSize> CheckHeader(const ShardMap& map, const AttendRequest& header,
                                     CallPlanner& planner) {
  const ContextSpec& spec = map.SpecOf(header.layer);
  // Index queries, of a Select in a track's layer, have as many heads as they like.
  const auto heads = static_cast<int>(header.layer < map.spec.layers
                                          ? spec.heads
                                          : std::clamp<int64_t>(header.q.heads, 1, kHeadsMax));
  ANNULUS_RETURN_IF_ERROR(CheckShape("q", header.q, heads, spec.head_dim));
  ANNULUS_RETURN_IF_ERROR(CheckSinks(header.sinks, heads));
  if (header.index.q.tokens > 0) {
    ANNULUS_RETURN_IF_ERROR(CheckIndexQueries(map, header.index, header.q.tokens));
  }
  CallSize size;
  size.answer_bytes = static_cast<int64_t>(PartialBytes(header.q.tokens, heads, spec.v_head_dim));
  const CallItem item(header);
  const auto planned = planner.Recall(map, item.ask, header.pattern, header.plan);
  if (planned != nullptr) size.work_pairs = planned->size.work_pairs;
  return size;
}

}  // namespace annulus
