#include "runtime/coordinator/calls/select_first.h"

#include <iterator>
#include <optional>
#include <utility>

#include "base/status.h"
#include "runtime/coordinator/calls/index_item.h"
#include "runtime/coordinator/calls/select_by_columns.h"

namespace annulus {
namespace {

void AddLists(std::vector<CallList> more, std::vector<CallList>* lists) {
  lists->insert(lists->end(), std::make_move_iterator(more.begin()),
                std::make_move_iterator(more.end()));
}

}  // namespace

absl::StatusOr<AttendResult> SelectAndAttend(const AttendRequest& request, const CallContext& call,
                                             CallPlanner& planner, const Clock& clock, LookAt look,
                                             RunTrip run_trip, RunCall run) {
  const absl::Time begin = clock.Now();
  std::optional<AttendRequest> with_lists;
  if (!request.lists.empty()) {
    with_lists = request;
    ANNULUS_RETURN_IF_ERROR(planner.Resolve(call.caller.tenant, &with_lists->lists));
  }
  absl::StatusOr<ListsByColumns> columns =
      SelectByColumns(request, call, planner, clock, look, run_trip);
  if (columns.ok() && !columns->lists.empty()) {
    if (!with_lists.has_value()) with_lists = request;
    AddLists(std::move(columns->lists), &with_lists->lists);
  }
  const AttendRequest& asked = with_lists.has_value() ? *with_lists : request;
  AttendCall attend(asked, call, planner, clock, StopOf(call, clock));
  attend.BeginAt(begin);
  if (!columns.ok()) return std::move(attend).TakeResult(columns.status());
  attend.Require(columns->truncations);
  absl::StatusOr<action::Finish> finish = run(attend);
  if (!finish.ok() || !attend.EndOf(0, *finish).ok() || !attend.selects(0)) {
    return std::move(attend).TakeResult(finish);
  }
  AttendRequest chosen = asked;
  chosen.index = {};
  absl::StatusOr<std::vector<CallList>> lists = attend.TakeLists(0);
  if (!lists.ok()) return std::move(attend).TakeResult(lists.status());
  AddLists(*std::move(lists), &chosen.lists);
  AttendCall second(chosen, call, planner, clock, StopOf(call, clock));
  second.BeginAt(attend.begin());
  second.Require(finish->items.at(0).truncations);
  return std::move(second).TakeResult(run(second));
}

absl::StatusOr<SelectResult> SelectAlone(const SelectRequest& request, const CallContext& call,
                                         CallPlanner& planner, const Clock& clock, LookAt look,
                                         RunTrip run_trip, RunCall run) {
  AttendRequest attend = AttendOf(request);
  ANNULUS_ASSIGN_OR_RETURN(ListsByColumns columns,
                           SelectByColumns(attend, call, planner, clock, look, run_trip));
  if (!columns.lists.empty() && !columns.others && request.weights.empty()) {
    return SelectResult{columns.epoch, std::move(columns.lists)};
  }
  attend.lists = columns.lists;
  CallItem item(attend);
  item.ask.truncations = columns.truncations;
  item.selects_only = true;
  item.weights = &request.weights;
  BatchCall batch({item}, call, planner, clock, StopOf(call, clock));
  ANNULUS_ASSIGN_OR_RETURN(const action::Finish finish, run(batch));
  ANNULUS_ASSIGN_OR_RETURN(const StepResult ended, batch.TakeResult(0, finish));
  ANNULUS_ASSIGN_OR_RETURN(std::vector<CallList> lists, batch.TakeLists(0));
  SelectResult result{ended.epoch, std::move(lists)};
  AddLists(std::move(columns.lists), &result.lists);
  return result;
}

StepPartResults SelectAndStep(absl::Span<const StepRequest> steps, const CallContext& call,
                              CallPlanner& planner, const Clock& clock, RunCall run) {
  BatchCall batch(ItemsOf(steps), call, planner, clock, StopOf(call, clock));
  ANNULUS_ASSIGN_OR_RETURN(const action::Finish finish, run(batch));
  std::vector<absl::StatusOr<StepResult>> results;
  results.reserve(steps.size());
  std::vector<StepRequest> chosen;
  std::vector<size_t> index;  // of chosen[i] in steps
  for (size_t i = 0; i < steps.size(); ++i) {
    results.push_back(batch.TakeResult(i, finish));
    if (!results[i].ok() || !batch.selects(i) || steps[i].q.tokens == 0) continue;
    absl::StatusOr<std::vector<CallList>> lists = batch.TakeLists(i);
    if (!lists.ok()) {
      results[i] = lists.status();
      continue;
    }
    StepRequest& next = chosen.emplace_back(steps[i]);
    next.start += next.k.tokens;
    next.k = next.v = {};
    next.key = {};
    next.index = {};
    AddLists(*std::move(lists), &next.lists);
    index.push_back(i);
  }
  if (chosen.empty()) return results;
  std::vector<CallItem> items(chosen.begin(), chosen.end());
  for (size_t i = 0; i < items.size(); ++i) {
    items[i].ask.appended_before = true;
    items[i].ask.truncations = finish.items[index[i]].truncations;
  }
  BatchCall second(std::move(items), call, planner, clock, StopOf(call, clock));
  const absl::StatusOr<action::Finish> ended = run(second);
  for (size_t i = 0; i < index.size(); ++i) {
    results[index[i]] =
        ended.ok() ? second.TakeResult(i, *ended) : absl::StatusOr<StepResult>(ended.status());
  }
  return results;
}

}  // namespace annulus
