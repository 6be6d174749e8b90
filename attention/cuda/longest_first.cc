#include "attention/cuda/longest_first.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace annulus::cuda {
namespace {

// When each slot is free; the soonest is taken.
class Ends {
 public:
  explicit Ends(int slots) : ends_(static_cast<size_t>(slots), 0) {}

  int64_t Soonest() const { return ends_.front(); }
  void Take(int64_t time) {
    std::pop_heap(ends_.begin(), ends_.end(), std::greater<>());
    ends_.back() += time;
    last_ = std::max(last_, ends_.back());
    std::push_heap(ends_.begin(), ends_.end(), std::greater<>());
  }
  int64_t last() const { return last_; }

 private:
  std::vector<int64_t> ends_;  // a heap, the soonest first
  int64_t last_ = 0;
};

std::vector<Part> Whole(const std::vector<int64_t>& sizes) {
  std::vector<Part> parts;
  parts.reserve(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) parts.push_back({i, 0, sizes[i]});
  return parts;
}

bool WholeIsGood(const std::vector<int64_t>& sizes, int slots, int64_t overhead, int64_t even) {
  const int64_t enough = even * 102 / 100;
  const int64_t longest = *std::max_element(sizes.begin(), sizes.end());
  // Whoever ends last began before the others ran out of work. This spares long lists the rest.
  if (even + longest + overhead <= enough) return true;
  Ends ends(slots);
  for (const int64_t size : sizes) ends.Take(size + overhead);
  return ends.last() <= enough;
}

}  // namespace

std::vector<Part> CutForSlots(const std::vector<int64_t>& sizes, int slots, int64_t overhead,
                              int64_t least) {
  if (sizes.empty()) return {};
  const auto count = static_cast<int64_t>(sizes.size());
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), overhead * count);
  int64_t even = total / slots + 1;
  if (WholeIsGood(sizes, slots, overhead, even)) return Whole(sizes);
  even += 2 * overhead;  // of the parts that cuts add
  std::vector<Part> parts;
  Ends ends(slots);
  for (size_t i = 0; i < sizes.size(); ++i) {
    for (int64_t begin = 0; begin < sizes[i];) {
      const int64_t left = sizes[i] - begin;
      int64_t room = even - ends.Soonest() - overhead;
      if (room < least) {  // in no slot there is more
        even += least - room;
        room = least;
      }
      const int64_t size = left <= room + least / 2 ? left : room;
      parts.push_back({i, begin, size});
      ends.Take(size + overhead);
      begin += size;
    }
  }
  return parts;
}

}  // namespace annulus::cuda
