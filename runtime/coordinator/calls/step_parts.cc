#include "runtime/coordinator/calls/step_parts.h"

#include <algorithm>
#include <iterator>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "runtime/limits.h"

namespace annulus {
namespace {

std::tuple<ContextId, int> LayerOf(const StepRequest& request) {
  return {request.context, request.layer};
}

using Results = std::vector<absl::StatusOr<StepResult>>;
using Step = absl::FunctionRef<StepPartResults(absl::Span<const StepRequest>)>;

Results AllEnd(size_t count, const absl::Status& why) {
  Results results;
  results.reserve(count);
  for (size_t i = 0; i < count; ++i) results.emplace_back(why);
  return results;
}

Results StepAll(absl::Span<const StepRequest> requests, Step step) {
  const size_t count = requests.size();
  if (count == 0) return {};
  StepPartResults results = absl::InvalidArgumentError("more than one message holds");
  if (count <= size_t{kStepsAtOnceMax}) results = step(requests);
  if (results.ok()) return *std::move(results);
  if (!absl::IsInvalidArgument(results.status()) || count == 1) {
    return AllEnd(count, results.status());
  }
  // Nothing of them has begun.
  const size_t first = count > size_t{kStepsAtOnceMax} ? size_t{kStepsAtOnceMax} : count / 2;
  Results ends = StepAll(requests.first(first), step);
  Results rest = StepAll(requests.subspan(first), step);
  std::move(rest.begin(), rest.end(), std::back_inserter(ends));
  return ends;
}

absl::Status Repeated(const StepRequest& request, size_t index, size_t other) {
  return absl::InvalidArgumentError(absl::StrCat(
      "requests[", index, "]: context ", request.context, " layer ", request.layer,
      " is in requests[", other, "] too; expected each layer of a context once in a Step"));
}

}  // namespace

absl::Status CheckStepCount(size_t count) {
  if (count <= static_cast<size_t>(kStepsMax)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("requests: ", count, " steps; expected at most ", kStepsMax));
}

std::vector<std::pair<size_t, absl::Status>> RepeatedSteps(absl::Span<const StepRequest> requests) {
  // Mostly they ascend: then nothing is repeated, and there is nothing to sort.
  const auto descend = [](const StepRequest& a, const StepRequest& b) {
    return LayerOf(a) >= LayerOf(b);
  };
  if (std::adjacent_find(requests.begin(), requests.end(), descend) == requests.end()) return {};
  std::vector<size_t> order(requests.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return LayerOf(requests[a]) < LayerOf(requests[b]); });
  std::vector<std::pair<size_t, absl::Status>> repeated;
  for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    const StepRequest& first = requests[order[begin]];
    while (end < order.size() && LayerOf(requests[order[end]]) == LayerOf(first)) ++end;
    if (end - begin == 1) continue;
    for (size_t i = begin; i < end; ++i) {
      const size_t other = order[i == begin ? begin + 1 : begin];
      repeated.emplace_back(order[i], Repeated(first, order[i], other));
    }
  }
  return repeated;
}

std::vector<absl::StatusOr<StepResult>> StepInParts(
    absl::Span<const StepRequest> requests, const std::string& tenant, CallPlanner& planner,
    absl::FunctionRef<StepPartResults(absl::Span<const StepRequest>)> step) {
  if (absl::Status count = CheckStepCount(requests.size()); !count.ok()) {
    return AllEnd(requests.size(), count);
  }
  const auto repeated = RepeatedSteps(requests);
  const bool have_lists = std::any_of(requests.begin(), requests.end(),
                                      [](const auto& request) { return !request.lists.empty(); });
  if (repeated.empty() && !have_lists) return StepAll(requests, step);
  Results results(requests.size());
  std::vector<bool> is_refused(requests.size());
  for (const auto& [index, why] : repeated) {
    results[index] = why;
    is_refused[index] = true;
  }
  std::vector<StepRequest> others;
  std::vector<size_t> index;  // of others[i] in the call
  for (size_t i = 0; i < requests.size(); ++i) {
    if (is_refused[i]) continue;
    StepRequest& request = others.emplace_back(requests[i]);
    if (absl::Status kept = planner.Resolve(tenant, &request.lists); !kept.ok()) {
      results[i] = std::move(kept);
      others.pop_back();
      continue;
    }
    index.push_back(i);
  }
  Results ends = StepAll(others, step);
  for (size_t i = 0; i < index.size(); ++i) results[index[i]] = std::move(ends[i]);
  return results;
}

}  // namespace annulus
