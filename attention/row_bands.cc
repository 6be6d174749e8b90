#include "attention/row_bands.h"

#include <algorithm>
#include <utility>

#include "attention/congruence.h"

namespace annulus {
namespace {

// Σ ⌊(a·i + b) / m⌋ over i in [0, n); a, b ≥ 0, m ≥ 1 (Euclid's algorithm on the lattice points
// under a line).
int64_t FloorSum(int64_t n, int64_t m, int64_t a, int64_t b) {
  int64_t sum = 0;
  while (n > 0) {
    sum += n * (n - 1) / 2 * (a / m) + n * (b / m);
    a %= m;
    b %= m;
    const int64_t top = a * n + b;
    if (top < m) break;
    n = top / m;
    b = top % m;
    std::swap(a, m);
  }
  return sum;
}

// The numbers first, first + step, … below `end`, and how many of them lie below a bound.
struct Numbers {
  int64_t first = 0;
  int64_t step = 1;
  int64_t end = 0;

  int64_t Below(int64_t bound) const {
    bound = std::min(bound, end);
    return bound <= first ? 0 : (bound - first - 1) / step + 1;
  }

  // Σ Below(bound + i·move) over i in [0, n).
  int64_t SumBelow(int64_t bound, int64_t move, int64_t n) const {
    if (first >= end) return 0;
    if (move == 0) return n * Below(bound);
    const int64_t none = std::clamp<int64_t>((first - bound) / move + 1, 0, n);
    const int64_t from = bound > first ? 0 : none;
    const int64_t all =
        std::clamp<int64_t>(bound >= end ? 0 : (end - bound + move - 1) / move, from, n);
    return FloorSum(all - from, step, move, bound + from * move - first - 1 + step) +
           (n - all) * Below(end);
  }
};

// Those of the band's blocks, its ends aside, that are in `kv`.
Numbers Common(const RowBand& band, const BlockRun& kv) {
  if (kv.count == 0) return {};
  const int64_t end = kv.last() + 1;
  if (band.step == 1) return {kv.first, kv.step, end};
  if (kv.step == 1) {
    return {kv.first + FloorMod(band.first - kv.first, band.step), band.step, end};
  }
  const CommonNumbers common = Meet(band.first, band.step, kv.first, kv.step, kv.first);
  if (!common.found || common.first >= end) return {};
  const int64_t first = static_cast<int64_t>(common.first);
  // A step that leaves the run has no second number.
  return {first, static_cast<int64_t>(std::min<__int128>(common.step, end - first)), end};
}

void AppendRange(int64_t begin, int64_t end, std::vector<BlockRun>* out) {
  if (begin < end) out->push_back({begin, end - begin, 1});
}

// One end of a row: at a block, or that many blocks from the query block.
struct Edge {
  int64_t at = 0;
  bool moves = false;

  int64_t At(int64_t q_block) const { return at + (moves ? q_block : 0); }
};

struct Range {
  Edge begin;
  Edge end;
};

// The stretches of bands that all hold for the same query blocks.
class StretchMaker {
 public:
  StretchMaker(int64_t bands_max, std::vector<RowStretch>* out) : left_(bands_max), out_(out) {}

  // False as MakeStretches.
  bool Add(int64_t q_begin, int64_t q_end, const std::vector<const BlockBand*>& bands) {
    Cut(q_begin, q_end, bands);
    for (size_t i = 0; i + 1 < cuts_.size(); ++i) {
      if (!AddPart(cuts_[i], cuts_[i + 1], bands)) return false;
    }
    return true;
  }

 private:
  // Where an end that moves passes one that does not. Between two cuts all ends keep their order.
  void Cut(int64_t q_begin, int64_t q_end, const std::vector<const BlockBand*>& bands) {
    still_.clear();
    moving_.clear();
    for (const BlockBand* band : bands) {
      still_.insert(still_.end(), {band->k_begin, band->k_end});
      moving_.insert(moving_.end(), {-band->d_max, 1 - band->d_min});
    }
    for (std::vector<int64_t>* edges : {&still_, &moving_}) {
      std::sort(edges->begin(), edges->end());
      edges->erase(std::unique(edges->begin(), edges->end()), edges->end());
    }
    cuts_ = {q_begin, q_end};
    for (const int64_t still : still_) {
      for (const int64_t moving : moving_) {
        for (const int64_t q : {still - moving, still - moving + 1}) {
          if (q > q_begin && q < q_end) cuts_.push_back(q);
        }
      }
    }
    std::sort(cuts_.begin(), cuts_.end());
    cuts_.erase(std::unique(cuts_.begin(), cuts_.end()), cuts_.end());
  }

  bool AddPart(int64_t q_begin, int64_t q_end, const std::vector<const BlockBand*>& bands) {
    const int64_t q = q_begin;
    ranges_.clear();
    RowStretch stretch{q_begin, q_end, {}};
    for (const BlockBand* band : bands) {
      if (band->step == 1) AddRange(q, RangeOf(*band, q));
    }
    Join(q);
    for (const Range& range : ranges_) stretch.bands.push_back(BandOf(range, 0, 1));
    for (size_t i = 0; i < bands.size(); ++i) {
      if (bands[i]->step == 1) continue;
      for (size_t j = 0; j < i; ++j) {
        if (bands[j]->step != 1 && Overlap(*bands[i], *bands[j], q)) return false;
      }
      AddBetween(q, *bands[i], &stretch.bands);
    }
    if (stretch.bands.empty()) return true;
    if (!out_->empty() && out_->back().q_end == q_begin && out_->back().bands == stretch.bands) {
      out_->back().q_end = q_end;
      return true;
    }
    left_ -= static_cast<int64_t>(stretch.bands.size());
    out_->push_back(std::move(stretch));
    return left_ >= 0;
  }

  static Range RangeOf(const BlockBand& band, int64_t q) {
    Range range{{band.k_begin, false}, {band.k_end, false}};
    if (q - band.d_max > band.k_begin) range.begin = {-band.d_max, true};
    if (q - band.d_min + 1 < band.k_end) range.end = {1 - band.d_min, true};
    return range;
  }

  void AddRange(int64_t q, const Range& range) {
    if (range.begin.At(q) < range.end.At(q)) ranges_.push_back(range);
  }

  // Ascending, and one range where two overlap or touch.
  void Join(int64_t q) {
    std::sort(ranges_.begin(), ranges_.end(),
              [q](const Range& a, const Range& b) { return a.begin.At(q) < b.begin.At(q); });
    size_t kept = 0;
    for (const Range& range : ranges_) {
      if (kept == 0 || ranges_[kept - 1].end.At(q) < range.begin.At(q)) {
        ranges_[kept++] = range;
      } else if (ranges_[kept - 1].end.At(q) < range.end.At(q)) {
        ranges_[kept - 1].end = range.end;
      }
    }
    ranges_.resize(kept);
  }

  static bool Overlap(const BlockBand& a, const BlockBand& b, int64_t q) {
    const Range x = RangeOf(a, q), y = RangeOf(b, q);
    const int64_t begin = std::max(x.begin.At(q), y.begin.At(q));
    const int64_t end = std::min(x.end.At(q), y.end.At(q));
    return begin < end && (a.step != b.step || FloorMod(a.first - b.first, a.step) == 0);
  }

  // What a band with a step has between the ranges.
  void AddBetween(int64_t q, const BlockBand& band, std::vector<RowBand>* bands) const {
    Range rest = RangeOf(band, q);
    for (const Range& range : ranges_) {
      if (range.end.At(q) <= rest.begin.At(q)) continue;
      if (range.begin.At(q) >= rest.end.At(q)) break;
      if (rest.begin.At(q) < range.begin.At(q)) {
        bands->push_back(BandOf({rest.begin, range.begin}, band.first, band.step));
      }
      rest.begin = range.end;
    }
    if (rest.begin.At(q) < rest.end.At(q)) {
      bands->push_back(BandOf(rest, band.first, band.step));
    }
  }

  static RowBand BandOf(const Range& range, int64_t first, int64_t step) {
    return {range.begin.at, range.end.at, range.begin.moves, range.end.moves, first, step};
  }

  int64_t left_;
  std::vector<RowStretch>* const out_;
  std::vector<int64_t> still_, moving_, cuts_;
  std::vector<Range> ranges_;
};

}  // namespace

BlockRun RowBand::Row(int64_t q_block) const {
  const int64_t low = Begin(q_block), high = End(q_block);
  if (step == 1) return {low, std::max<int64_t>(0, high - low), 1};
  const int64_t from = low + FloorMod(first - low, step);
  if (from >= high) return {0, 0, 1};
  const int64_t count = (high - 1 - from) / step + 1;
  return {from, count, count == 1 ? 1 : step};
}

int64_t BlocksSeen(const RowBand& band, const BlockRun& rows, const BlockRun& kv) {
  const Numbers blocks = Common(band, kv);
  const auto sum = [&](int64_t edge, bool moves) {
    return blocks.SumBelow(edge + (moves ? rows.first : 0), moves ? rows.step : 0, rows.count);
  };
  return sum(band.end, band.end_moves) - sum(band.begin, band.begin_moves);
}

void AppendSeen(const RowBand& band, const BlockRun& rows, std::vector<BlockRun>* out) {
  if (rows.count == 0) return;
  const auto gap = [&](int64_t q) { return band.Begin(q + rows.step) - band.End(q); };
  // From row to row the ranges leave no gap: together they are one.
  if (rows.count == 1 || std::max(gap(rows.first), gap(rows.last() - rows.step)) <= 0) {
    RowBand all = band;
    all.begin = band.Begin(rows.first);
    all.end = band.End(rows.last());
    all.begin_moves = all.end_moves = false;
    const BlockRun run = all.Row(0);
    if (run.count > 0) out->push_back(run);
    return;
  }
  for (int64_t i = 0; i < rows.count; ++i) {
    const BlockRun run = band.Row(rows.first + i * rows.step);
    if (run.count > 0) out->push_back(run);
  }
}

void AppendSeeing(const RowBand& band, int64_t q_begin, int64_t q_end, const BlockRun& kv,
                  std::vector<BlockRun>* out) {
  Numbers blocks = Common(band, kv);
  // Without the blocks that no end of the band reaches.
  const int64_t low = band.Begin(q_begin);
  if (blocks.first < low) {
    blocks.first = low + FloorMod(blocks.first - low, blocks.step);
  }
  blocks.end = std::min(blocks.end, band.End(q_end - 1));
  const int64_t count = blocks.Below(blocks.end);
  if (count == 0) return;
  const int64_t last = blocks.first + (count - 1) * blocks.step;
  // A block k is seen by the query blocks [k + 1 − end, k − begin], where the ends move.
  const int64_t from = band.end_moves ? 1 - band.end : 0;
  const int64_t to = band.begin_moves ? 1 - band.begin : 0;
  if (!band.begin_moves || !band.end_moves || to - from >= blocks.step) {
    return AppendRange(band.end_moves ? std::max(q_begin, blocks.first + from) : q_begin,
                       band.begin_moves ? std::min(q_end, last + to) : q_end, out);
  }
  for (int64_t away = from; away < to; ++away) {
    const BlockRun run{blocks.first + away, count, count == 1 ? 1 : blocks.step};
    const BlockRun seeing = Intersect(run, {q_begin, q_end - q_begin, 1});
    if (seeing.count > 0) out->push_back(seeing);
  }
}

bool MakeStretches(std::vector<BlockBand> bands, int64_t bands_max, std::vector<RowStretch>* out) {
  std::sort(bands.begin(), bands.end(),
            [](const BlockBand& a, const BlockBand& b) { return a.q_begin < b.q_begin; });
  StretchMaker maker(bands_max, out);
  std::vector<const BlockBand*> open;
  size_t next = 0;
  int64_t q = 0;
  while (next < bands.size() || !open.empty()) {
    if (open.empty()) q = std::max(q, bands[next].q_begin);
    for (; next < bands.size() && bands[next].q_begin <= q; ++next) open.push_back(&bands[next]);
    int64_t end = next < bands.size() ? bands[next].q_begin : kFarBlocks;
    open.erase(std::remove_if(open.begin(), open.end(),
                              [q](const BlockBand* band) { return band->q_end <= q; }),
               open.end());
    for (const BlockBand* band : open) end = std::min(end, band->q_end);
    if (open.empty()) continue;
    if (!maker.Add(q, end, open)) return false;
    q = end;
  }
  return true;
}

}  // namespace annulus
