#include "attention/cuda/longest_first.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace annulus::cuda {
namespace {

// Until when the last of `slots` is busy, if each takes the largest part left.
int64_t Makespan(const std::vector<int64_t>& sizes, int64_t most, int slots, int64_t overhead) {
  std::vector<int64_t> parts;
  parts.reserve(sizes.size());
  for (const int64_t size : sizes) {
    const int64_t count = PartCount(size, most);
    for (int64_t i = 0; i < count; ++i) {
      parts.push_back(PartBegin(size, count, i + 1) - PartBegin(size, count, i) + overhead);
    }
  }
  std::sort(parts.begin(), parts.end(), std::greater<>());
  // A heap whose first entry is the slot that is free soonest.
  std::vector<int64_t> ends(static_cast<size_t>(slots), 0);
  int64_t last = 0;
  for (const int64_t part : parts) {
    std::pop_heap(ends.begin(), ends.end(), std::greater<>());
    ends.back() += part;
    last = std::max(last, ends.back());
    std::push_heap(ends.begin(), ends.end(), std::greater<>());
  }
  return last;
}

}  // namespace

int64_t LargestPart(const std::vector<int64_t>& sizes, int slots, int64_t overhead, int64_t least) {
  if (sizes.empty()) return least;
  const auto count = static_cast<int64_t>(sizes.size());
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), overhead * count);
  const int64_t longest = *std::max_element(sizes.begin(), sizes.end());
  const int64_t enough = (total / slots + 1) * 102 / 100;
  // Whoever ends last began before the others ran out of work. This spares long lists the search.
  if (total / slots + longest + overhead <= enough) return longest;
  // A part that is longer than the whole may take is no use.
  int64_t most = std::max(least, std::min(longest, enough));
  int64_t best = most;
  for (int64_t best_end = Makespan(sizes, most, slots, overhead);
       best_end > enough && most > least;) {
    most = std::max(least, (most + 1) / 2);
    const int64_t end = Makespan(sizes, most, slots, overhead);
    if (end < best_end) {
      best_end = end;
      best = most;
    }
  }
  return best;
}

}  // namespace annulus::cuda
