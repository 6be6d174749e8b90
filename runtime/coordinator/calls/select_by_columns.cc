#include "runtime/coordinator/calls/select_by_columns.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "attention/attend_args.h"
#include "attention/column_selector.h"
#include "attention/has_list.h"
#include "base/status.h"
#include "runtime/coordinator/calls/item_selection.h"

namespace annulus {
namespace {

ColumnQuestion QuestionOf(const AttendRequest& request, const ColumnSelector& selector) {
  const int64_t rows = std::min(request.q.tokens, selector.last_queries());
  const int64_t before = request.q.tokens - rows;
  return {request.context,
          request.layer,
          request.q_start + before,
          request.kv_len,
          request.q.Tokens(before, rows),
          request.scale};
}

}  // namespace

absl::StatusOr<ListsByColumns> SelectByColumns(const AttendRequest& request,
                                               const CallContext& call, CallPlanner& planner,
                                               const Clock& clock, LookAt look, RunTrip run_trip) {
  ListsByColumns made;
  ANNULUS_ASSIGN_OR_RETURN(const ShardMapPtr map, look(request.context));
  if (request.layer >= map->spec.layers) return made;
  const auto pattern = planner.PatternFor(*map, request.layer, request.pattern);
  if (!pattern.ok()) return made;
  ANNULUS_RETURN_IF_ERROR(CheckScale(request.scale));
  for (const auto& selector : (*pattern)->selectors()) {
    if (HasList(request.lists, selector->name())) continue;
    const ColumnSelector* const word = selector->by_column();
    made.others |= word == nullptr;
    if (word == nullptr) continue;
    ANNULUS_RETURN_IF_ERROR(CheckHoldsAllKeys(map->spec, *word));
    const TokenRange queries{request.q_start, request.q_start + request.q.tokens};
    ANNULUS_RETURN_IF_ERROR(word->CheckCall(queries, map->spec.heads));
    const ColumnQuestion question = QuestionOf(request, *word);
    ColumnWork work;
    work.weights = word->trip();
    work.truncations = made.truncations;
    for (const ColumnTrip trip : {ColumnTrip::kSums, word->trip()}) {
      ANNULUS_ASSIGN_OR_RETURN(const action::ItemEnd end,
                               RunColumnTrip(question, trip, call, clock, run_trip, &work));
      made.epoch = end.epoch;
      made.truncations = end.truncations;
    }
    ANNULUS_ASSIGN_OR_RETURN(KeyListData list,
                             work.merge->Pick(*word, request.q, question.ScaleFor(map->spec)));
    made.lists.push_back({selector->name(), std::make_shared<const KeyListData>(std::move(list))});
  }
  return made;
}

}  // namespace annulus
