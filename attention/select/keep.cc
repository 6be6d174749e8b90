#include "attention/select/keep.h"

#include <algorithm>
#include <numeric>

#include "attention/selector.h"

namespace annulus {
namespace {

float Pooled(absl::Span<const float> votes, int64_t at, const KeepRule& rule) {
  const int64_t half = rule.pool_width / 2;
  const int64_t begin = std::max<int64_t>(0, at - half);
  const int64_t end = std::min(std::ssize(votes), at + half + 1);
  if (rule.pool == VotePool::kMax) {
    return *std::max_element(votes.begin() + begin, votes.begin() + end);
  }
  double sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += double{votes[i]};
  return static_cast<float>(sum / rule.pool_width);
}

}  // namespace

std::vector<int32_t> KeysKept(absl::Span<const float> votes, const KeepRule& rule) {
  const int64_t keys = std::ssize(votes);
  std::vector<int32_t> kept;
  if (keys <= rule.keep) {
    kept.resize(votes.size());
    std::iota(kept.begin(), kept.end(), 0);
    return kept;
  }
  const absl::Span<const float> before = votes.subspan(0, keys - rule.recent);
  std::vector<Candidate> candidates;
  candidates.reserve(before.size());
  for (int64_t i = 0; i < std::ssize(before); ++i) {
    candidates.push_back({Pooled(before, i, rule), static_cast<int32_t>(i)});
  }
  const int64_t chosen = rule.keep - rule.recent;
  std::nth_element(candidates.begin(), candidates.begin() + chosen, candidates.end(), Before);
  for (int64_t i = 0; i < chosen; ++i) kept.push_back(candidates[i].unit);
  std::sort(kept.begin(), kept.end());
  for (int64_t i = std::ssize(before); i < keys; ++i) kept.push_back(static_cast<int32_t>(i));
  return kept;
}

}  // namespace annulus
