// TopUnits: the first few of many candidates in the order of Before(), whichever order they come
// in. Thread-compatible.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "attention/selector.h"

namespace annulus {

class TopUnits {
 public:
  explicit TopUnits(int64_t limit) : limit_(static_cast<size_t>(limit)) {}

  // A score that is no number comes before all others, so that it is seen that there is one.
  void Offer(Candidate candidate) {
    if (std::isnan(candidate.score)) candidate.score = std::numeric_limits<float>::infinity();
    if (limit_ == 0 || (bounded_ && !Before(candidate, last_))) return;
    kept_.push_back(candidate);
    if (kept_.size() >= 2 * limit_ + kSlack) Cut();
  }

  // The first of those it was offered, at most the limit, in any order.
  std::vector<Candidate> Take() && {
    if (kept_.size() > limit_) Cut();
    return std::move(kept_);
  }

 private:
  static constexpr size_t kSlack = 64;  // so that few are looked at more than once

  void Cut() {
    std::nth_element(kept_.begin(), kept_.begin() + static_cast<int64_t>(limit_) - 1, kept_.end(),
                     Before);
    kept_.resize(limit_);
    last_ = kept_.back();
    bounded_ = true;
  }

  const size_t limit_;
  std::vector<Candidate> kept_;
  Candidate last_;  // of those kept at the last cut; what does not come before it has no chance
  bool bounded_ = false;
};

}  // namespace annulus
