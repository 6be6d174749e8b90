#include "runtime/service/calls.h"

#include "absl/strings/str_cat.h"

namespace annulus {

absl::Status CheckWhole(const AppendGrant& grant) {
  const auto bad = [](int64_t value, absl::string_view expected) {
    return absl::InvalidArgumentError(absl::StrCat("ranks: ", value, "; expected ", expected));
  };
  if (grant.ranks.size() != grant.addresses.size()) {
    return bad(static_cast<int64_t>(grant.ranks.size()),
               absl::StrCat("one for each of ", grant.addresses.size(), " addresses"));
  }
  for (const int rank : grant.ranks) {
    if (rank >= grant.world) return bad(rank, absl::StrCat("less than ", grant.world));
  }
  return absl::OkStatus();
}

absl::Status CheckWhole(const KeepRule& rule) {
  if (rule.recent > rule.keep) {
    return absl::InvalidArgumentError(
        absl::StrCat("recent: ", rule.recent, "; expected at most keep, ", rule.keep));
  }
  if (rule.pool_width % 2 == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("pool_width: ", rule.pool_width, "; expected an odd number"));
}

StepResults StepResultsOf(absl::StatusOr<StepResults> answer, size_t steps) {
  if (answer.ok()) return *std::move(answer);
  StepResults results;
  results.reserve(steps);
  for (size_t i = 0; i < steps; ++i) results.emplace_back(answer.status());
  return results;
}

}  // namespace annulus
