#include "sharding/head_map.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace annulus {
namespace {

// Weights that differ by less than this part of them are not told apart.
constexpr int64_t kAlikePart = 64;
// What the fullest group may have above the mean, in percent: of an even cut that stays, and of
// what is made instead, whose weights change as a context grows.
constexpr int64_t kStaysPercent = 5;
constexpr int64_t kMadePercent = 3;

bool IsEven(int64_t most, int64_t total, int64_t groups, int64_t percent) {
  return static_cast<__int128>(most) * groups * 100 <=
         static_cast<__int128>(total) * (100 + percent);
}

// Adds a range to ascending ones, which it may touch or overlap.
void Add(HeadRange range, HeadRanges* ranges) {
  if (!ranges->empty() && range.first <= ranges->back().end()) {
    HeadRange& back = ranges->back();
    back.count = std::max(back.end(), range.end()) - back.first;
  } else {
    ranges->push_back(range);
  }
}

// Who holds which KV heads.
class Holders {
 public:
  Holders(int groups, int copies_max, const std::vector<int64_t>& weights)
      : weights_(weights),
        copies_max_(std::min(copies_max, groups)),
        loads_(static_cast<size_t>(groups)),
        holders_(weights.size()) {}

  // By KV head: the groups that hold it, ascending.
  std::vector<std::vector<int>> Assign() && {
    std::vector<int> order(weights_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [this](int a, int b) { return weights_[a] > weights_[b]; });
    int64_t rest = std::accumulate(weights_.begin(), weights_.end(), int64_t{0});
    for (size_t begin = 0; begin < order.size();) {
      size_t end = begin;
      const int64_t heaviest = weights_[order[begin]];
      while (end < order.size() && heaviest - weights_[order[end]] <= heaviest / kAlikePart) {
        rest -= weights_[order[end++]];
      }
      std::sort(order.begin() + begin, order.begin() + end);
      Place({order.begin() + begin, order.begin() + end}, rest);
      begin = end;
    }
    Fill();
    for (std::vector<int>& groups : holders_) std::sort(groups.begin(), groups.end());
    return std::move(holders_);
  }

 private:
  bool Balanced(int64_t rest) const {
    return IsEven(*std::max_element(loads_.begin(), loads_.end()),
                  std::accumulate(loads_.begin(), loads_.end(), rest), std::ssize(loads_),
                  kMadePercent);
  }

  // Places heads of about the same weight, each once, or as often as it takes for lighter ones,
  // which weigh `rest`, to be able to fill up what is less full.
  void Place(const std::vector<int>& alike, int64_t rest) {
    const int64_t count = std::ssize(alike);
    const int64_t weight = weights_[alike[0]];
    std::vector<int64_t> slots(loads_.size());  // heads of these, by group
    int64_t copies = 0;
    while (copies < count || (copies < count * copies_max_ && !Balanced(rest))) {
      size_t least = slots.size();
      for (size_t group = 0; group < slots.size(); ++group) {
        if (slots[group] == count) continue;
        if (least == slots.size() || loads_[group] < loads_[least]) least = group;
      }
      if (least == slots.size()) break;
      ++slots[least];
      ++copies;
      loads_[least] += weight;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t times = copies / count + (i < copies % count ? 1 : 0);
      std::vector<int>& holders = holders_[alike[i]];
      for (int64_t copy = 0; copy < times; ++copy) {
        const int group = NextHolder(slots, times > 1, holders);
        --slots[group];
        holders.push_back(group);
      }
    }
  }

  // A head that is held once goes to the first group with room, so that ranges are long; else to
  // that with most, so that in the end there are enough different ones.
  static int NextHolder(const std::vector<int64_t>& slots, bool most,
                        const std::vector<int>& holders) {
    int next = -1;
    for (int group = 0; group < std::ssize(slots); ++group) {
      if (slots[group] == 0) continue;
      if (std::find(holders.begin(), holders.end(), group) != holders.end()) continue;
      if (next < 0 || (most && slots[group] > slots[next])) next = group;
    }
    ANNULUS_CHECK(next >= 0);
    return next;
  }

  // Copies that do not make the fullest group fuller, where groups are left less full.
  void Fill() {
    while (!Balanced(0)) {
      const auto least = std::min_element(loads_.begin(), loads_.end());
      const int group = static_cast<int>(least - loads_.begin());
      const int64_t room = *std::max_element(loads_.begin(), loads_.end()) - *least;
      int best = -1;
      for (int head = 0; head < std::ssize(weights_); ++head) {
        const std::vector<int>& holders = holders_[head];
        if (weights_[head] == 0 || weights_[head] > room || std::ssize(holders) >= copies_max_ ||
            std::find(holders.begin(), holders.end(), group) != holders.end()) {
          continue;
        }
        if (best < 0 || weights_[head] > weights_[best]) best = head;
      }
      if (best < 0) return;
      holders_[best].push_back(group);
      *least += weights_[best];
    }
  }

  const std::vector<int64_t>& weights_;
  const int64_t copies_max_;
  std::vector<int64_t> loads_;  // by group
  std::vector<std::vector<int>> holders_;
};

// The fullest group's weight, and that of all.
std::pair<int64_t, int64_t> Loads(const HeadMap& map, const std::vector<int64_t>& weights) {
  int64_t most = 0, total = 0;
  for (int group = 0; group < map.groups(); ++group) {
    int64_t load = 0;
    ForEachHead(map.KvHeads(group), [&](int head) { load += weights[head]; });
    most = std::max(most, load);
    total += load;
  }
  return {most, total};
}

}  // namespace

HeadMap::HeadMap(int heads, int kv_heads, std::vector<HeadRanges> query) {
  const int group_heads = heads / kv_heads;
  auto data = std::make_shared<Data>();
  data->heads = heads;
  data->kv.resize(query.size());
  data->first_holder.assign(static_cast<size_t>(kv_heads), static_cast<int>(query.size()));
  for (size_t group = 0; group < query.size(); ++group) {
    for (const HeadRange& range : query[group]) {
      const int first = range.first / group_heads;
      Add({first, (range.end() - 1) / group_heads + 1 - first}, &data->kv[group]);
    }
    ForEachHead(data->kv[group], [&](int head) {
      int& holder = data->first_holder[static_cast<size_t>(head)];
      holder = std::min(holder, static_cast<int>(group));
    });
  }
  data->query = std::move(query);
  data_ = std::move(data);
}

HeadMap HeadMap::Even(int groups, int heads, int kv_heads) {
  ANNULUS_CHECK(groups >= 1 && kv_heads >= 1 && heads >= 1 && heads % kv_heads == 0);
  std::vector<HeadRanges> query(static_cast<size_t>(groups));
  const int size = heads / groups;
  const int longer = heads % groups;  // this many groups have one head more
  int first = 0;
  for (int group = 0; group < groups; ++group) {
    const int count = size + (group < longer ? 1 : 0);
    if (count > 0) query[static_cast<size_t>(group)].push_back({first, count});
    first += count;
  }
  return HeadMap(heads, kv_heads, std::move(query));
}

HeadMap HeadMap::ByWeight(int groups, int heads, const std::vector<int64_t>& weights) {
  HeadMap even = Even(groups, heads, static_cast<int>(weights.size()));
  const auto [low, high] = std::minmax_element(weights.begin(), weights.end());
  if (*high - *low <= *high / kAlikePart) return even;
  const auto [even_most, even_total] = Loads(even, weights);
  if (IsEven(even_most, even_total, groups, kStaysPercent)) return even;
  const int group_heads = heads / even.kv_heads();
  const std::vector<std::vector<int>> holders = Holders(groups, group_heads, weights).Assign();
  std::vector<HeadRanges> query(static_cast<size_t>(groups));
  for (int head = 0; head < even.kv_heads(); ++head) {
    const std::vector<int>& of_head = holders[static_cast<size_t>(head)];
    const int count = static_cast<int>(of_head.size());
    for (int i = 0; i < count; ++i) {
      const int begin = i * group_heads / count, end = (i + 1) * group_heads / count;
      Add({head * group_heads + begin, end - begin}, &query[static_cast<size_t>(of_head[i])]);
    }
  }
  HeadMap map(heads, even.kv_heads(), std::move(query));
  const auto [most, total] = Loads(map, weights);
  const bool better =
      static_cast<__int128>(most) * even_total < static_cast<__int128>(even_most) * total;
  return better ? map : even;
}

}  // namespace annulus
