#include "sharding/assign_heads.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "base/check.h"

namespace annulus {
namespace {

// Work is scaled to less than that in all, so that products stay far from overflow.
constexpr int64_t kWorkMax = int64_t{1} << 30;
// Units whose work differs by less than this part of it are handed out alike.
constexpr int64_t kAlikePart = 64;
// A group is full this part above the mean: with kAlikePart less than 1.05 of it.
constexpr int64_t kSlackPart = 32;
// A split leaves no smaller parts of a head: each costs its group a copy of the pages.
constexpr int64_t kPartsMin = 8;

// Query heads that stay together if they can: those of a KV head if they weigh the same, else each
// by itself.
struct Unit {
  int first = 0;
  int size = 1;
  int64_t work = 0;
};

class HeadAssigner {
 public:
  HeadAssigner(int head_groups, int64_t total, bool splits_rows)
      : limit_((total + total / kSlackPart) / head_groups + 1),
        splits_rows_(splits_rows),
        loads_(static_cast<size_t>(head_groups)),
        shares_(static_cast<size_t>(head_groups)) {}

  // Hands out units of one size and about the same work.
  void Place(std::span<Unit> alike) {
    const int64_t parts = std::ssize(alike) * alike[0].size * kHeadParts;
    int64_t work = 0;
    for (const Unit& unit : alike) work += unit.work;
    std::vector<int64_t> taken(loads_.size());  // parts, by group
    for (size_t i = 0; i < alike.size(); ++i) {
      for (int64_t left = int64_t{alike[0].size} * kHeadParts; left > 0;) {
        const auto least = std::min_element(loads_.begin(), loads_.end());
        const int64_t room = std::max<int64_t>(0, limit_ - *least);
        const int64_t count = Take(left, work == 0 ? left : room * parts / work);
        taken[static_cast<size_t>(least - loads_.begin())] += count;
        *least += work * count / parts;
        left -= count;
      }
    }
    std::sort(alike.begin(), alike.end(),
              [](const Unit& a, const Unit& b) { return a.first < b.first; });
    int64_t at = 0;
    for (size_t group = 0; group < taken.size(); ++group) {
      for (const int64_t end = at + taken[group]; at < end;) {
        const int64_t unit_parts = int64_t{alike[0].size} * kHeadParts;
        const Unit& unit = alike[static_cast<size_t>(at / unit_parts)];
        const int begin = static_cast<int>(at % kHeadParts);
        const int count = static_cast<int>(std::min<int64_t>(end - at, kHeadParts - begin));
        const int head = unit.first + static_cast<int>(at % unit_parts / kHeadParts);
        shares_[group].push_back({{head, 1}, begin, begin + count});
        at += count;
      }
    }
  }

  // The shares of each group, ascending, whole neighbours in one.
  HeadShares Finish() && {
    for (std::vector<HeadShare>& shares : shares_) {
      std::sort(shares.begin(), shares.end(), [](const HeadShare& a, const HeadShare& b) {
        return a.heads.first < b.heads.first;
      });
      std::vector<HeadShare> joined;
      for (const HeadShare& share : shares) {
        const bool joins = !joined.empty() && joined.back().heads.end() == share.heads.first &&
                           joined.back().whole() && share.whole();
        if (joins) {
          ++joined.back().heads.count;
        } else {
          joined.push_back(share);
        }
      }
      shares = std::move(joined);
    }
    return std::move(shares_);
  }

 private:
  // How many of the `left` parts of a unit a group takes that has room for `fits`: all, else whole
  // heads, else a part of one.
  int64_t Take(int64_t left, int64_t fits) const {
    if (fits >= left) return left;
    const int64_t cut = left % kHeadParts;  // of a head that others have a part of
    const int64_t whole = fits < cut ? 0 : (fits - cut) / kHeadParts * kHeadParts + cut;
    if (whole > 0) return whole;
    return std::min(left, splits_rows_ ? std::max(fits, kPartsMin) : int64_t{kHeadParts});
  }

  const int64_t limit_;
  const bool splits_rows_;
  std::vector<int64_t> loads_;  // by group
  HeadShares shares_;
};

std::vector<Unit> UnitsOf(const std::vector<int64_t>& work, int group) {
  std::vector<Unit> units;
  for (int first = 0; first < std::ssize(work); first += group) {
    const auto begin = work.begin() + first, end = begin + group;
    const auto [low, high] = std::minmax_element(begin, end);
    const int size = *low == *high ? group : 1;
    for (int head = first; head < first + group; head += size) {
      units.push_back({head, size, work[static_cast<size_t>(head)] * size});
    }
  }
  std::stable_sort(units.begin(), units.end(),
                   [](const Unit& a, const Unit& b) { return a.work > b.work; });
  return units;
}

}  // namespace

HeadShares AssignHeads(const std::vector<int64_t>& work, int group, int head_groups,
                       bool splits_rows) {
  ANNULUS_CHECK(group >= 1 && head_groups >= 1 && std::ssize(work) % group == 0);
  std::vector<int64_t> scaled = work;
  int64_t total = std::accumulate(scaled.begin(), scaled.end(), int64_t{0});
  while (total >= kWorkMax) {
    for (int64_t& head : scaled) head /= 2;
    total = std::accumulate(scaled.begin(), scaled.end(), int64_t{0});
  }
  HeadAssigner assigner(head_groups, total, splits_rows);
  std::vector<Unit> units = UnitsOf(scaled, group);
  for (size_t begin = 0; begin < units.size();) {
    size_t end = begin + 1;
    while (end < units.size() && units[end].size == units[begin].size &&
           units[begin].work - units[end].work <= units[begin].work / kAlikePart) {
      ++end;
    }
    assigner.Place(std::span(units).subspan(begin, end - begin));
    begin = end;
  }
  return std::move(assigner).Finish();
}

}  // namespace annulus
