// The coverage of a pattern: which keys the heads see together, and what each must keep.
#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>
#include <vector>

#include "attention/pattern.h"
#include "attention/pattern_node.h"

namespace annulus {
namespace {

constexpr size_t kSpansBeforeMerge = 4096;

struct Span {
  int64_t begin = 0;
  int64_t end = 0;
};

// A union of token ranges, merged now and then: those of neighbouring query blocks mostly overlap.
class Spans {
 public:
  void Add(Span span) {
    if (!spans_.empty() && span.begin <= spans_.back().end && spans_.back().begin <= span.end) {
      spans_.back().begin = std::min(spans_.back().begin, span.begin);
      spans_.back().end = std::max(spans_.back().end, span.end);
      return;
    }
    spans_.push_back(span);
    if (spans_.size() >= merge_at_) {
      Merge();
      merge_at_ = std::max(kSpansBeforeMerge, 2 * spans_.size());
    }
  }

  // Ascending and disjoint.
  const std::vector<Span>& Merge() {
    std::sort(spans_.begin(), spans_.end(),
              [](const Span& a, const Span& b) { return a.begin < b.begin; });
    size_t kept = 0;
    for (const Span& span : spans_) {
      if (kept > 0 && span.begin <= spans_[kept - 1].end) {
        spans_[kept - 1].end = std::max(spans_[kept - 1].end, span.end);
      } else {
        spans_[kept++] = span;
      }
    }
    spans_.resize(kept);
    return spans_;
  }

 private:
  std::vector<Span> spans_;
  size_t merge_at_ = kSpansBeforeMerge;
};

// Orders combs whose first tooth is the first one ≥ 0, so that equal combs are one.
struct CombOrder {
  bool operator()(const Comb& a, const Comb& b) const {
    return std::tie(a.period, a.first, a.length) < std::tie(b.period, b.first, b.length);
  }
};

using KeysSeen = std::map<Comb, Spans, CombOrder>;

void AddKeys(const ShapeList& shapes, KeysSeen* seen) {
  for (const Shape& shape : shapes) {
    Comb comb = shape.comb;
    if (!comb.all()) comb.first = FloorMod(comb.first, comb.period);
    (*seen)[comb].Add({shape.k_begin, shape.k_end});
  }
}

// Appends the keys that some query of the window sees, cell by cell.
void AppendCells(const PatternNode& rule, const ShapeWindow& window, ShapeList* out) {
  std::vector<TileRun> tiles;
  rule.Row(window, &tiles);
  for (const TileRun& tile : tiles) {
    for (int64_t i = 0; i < tile.blocks.count; ++i) {
      const int64_t block = tile.blocks.first + i * tile.blocks.step;
      ShapeWindow cell = window;
      cell.k_begin = std::max(window.k_begin, block * kBlockTokens);
      cell.k_end = std::min(window.k_end, (block + 1) * kBlockTokens);
      uint64_t mask[kBlockTokens], any = 0;
      rule.Mask(cell, window.q_begin / kBlockTokens, block, mask);
      for (const uint64_t row : mask) any |= row;
      for (int64_t k = cell.k_begin; k < cell.k_end; ++k) {
        if ((any >> (k - block * kBlockTokens) & 1) == 0) continue;
        const bool follows = !out->empty() && out->back().k_end == k;
        follows ? void(++out->back().k_end)
                : out->push_back({window.q_begin, window.q_end, k, k + 1, -kFar, kFar, {}});
      }
    }
  }
}

// Keys of [begin, end) in at least one comb. Only one period of the combs in common is laid out,
// or the range if that is shorter.
int64_t CountInAny(const std::vector<Comb>& combs, int64_t begin, int64_t end) {
  if (combs.size() == 1) return combs.front().CountIn(begin, end);
  __int128 period = 1;
  for (const Comb& comb : combs) {
    if (period < end - begin) {
      period = period / std::gcd(static_cast<int64_t>(period), comb.period) * comb.period;
    }
  }
  const auto count = [&combs](int64_t from, int64_t to) {
    Spans teeth;
    for (const Comb& comb : combs) {
      for (int64_t key = comb.NextFrom(from); key < to;) {
        const int64_t into = FloorMod(key - comb.first, comb.period);
        teeth.Add({key, std::min(to, key + comb.length - into)});
        key = comb.NextFrom(key + comb.length - into);
      }
    }
    int64_t keys = 0;
    for (const Span& span : teeth.Merge()) keys += span.end - span.begin;
    return keys;
  };
  if (period >= end - begin) return count(begin, end);
  const int64_t step = static_cast<int64_t>(period);
  const int64_t periods = (end - begin) / step;
  return periods * count(begin, begin + step) + count(begin + periods * step, end);
}

// Keys that some comb holds within its spans, by sweeping over the spans' ends.
int64_t CountKeys(KeysSeen* seen) {
  struct Event {
    int64_t at;
    const Comb* comb;
    bool begins;
  };
  std::vector<Event> events;
  for (auto& [comb, spans] : *seen) {
    for (const Span& span : spans.Merge()) {
      events.push_back({span.begin, &comb, true});
      events.push_back({span.end, &comb, false});
    }
  }
  std::sort(events.begin(), events.end(),
            [](const Event& a, const Event& b) { return a.at < b.at; });
  int64_t keys = 0;
  int64_t from = 0;
  bool all = false;
  std::vector<Comb> open;
  for (const Event& event : events) {
    if (event.at > from && all) keys += event.at - from;
    if (event.at > from && !all && !open.empty()) keys += CountInAny(open, from, event.at);
    from = event.at;
    if (event.comb->all()) {
      all = event.begins;
    } else if (event.begins) {
      open.push_back(*event.comb);
    } else {
      open.erase(std::find(open.begin(), open.end(), *event.comb));
    }
  }
  return keys;
}

}  // namespace

PatternCoverage Coverage(const Pattern& pattern, TokenRange q, int64_t kv_tokens) {
  KeysSeen seen;
  double kept_blocks = 0;
  for (int head = 0; head < pattern.kv_heads(); ++head) {
    kept_blocks += static_cast<double>(BlocksOf(kv_tokens) -
                                       pattern.Evictable(head, kv_tokens, kv_tokens).size());
    if (pattern.HeadClass(head) != head) continue;
    const PatternNode& rule = *pattern.rules_[head];
    const TokenRange keys{pattern.first_key(), kv_tokens};
    ShapeList shapes;
    if (rule.AppendSeen({q.begin, q.end, keys.begin, keys.end}, &shapes)) {
      AddKeys(shapes, &seen);
      continue;
    }
    for (int64_t begin = q.begin; begin < q.end;) {
      const int64_t end = std::min(q.end, (begin / kBlockTokens + 1) * kBlockTokens);
      const ShapeWindow window{begin, end, keys.begin, keys.end};
      shapes.clear();
      rule.shaped() ? rule.AppendShapes(window, &shapes) : AppendCells(rule, window, &shapes);
      AddKeys(shapes, &seen);
      begin = end;
    }
  }
  PatternCoverage coverage;
  if (kv_tokens <= pattern.first_key()) return coverage;
  coverage.covered =
      static_cast<double>(CountKeys(&seen)) / static_cast<double>(kv_tokens - pattern.first_key());
  coverage.kept_kv = kept_blocks / (static_cast<double>(BlocksOf(kv_tokens)) * pattern.kv_heads());
  return coverage;
}

}  // namespace annulus
