#include "attention/pattern_shapes.h"

#include <algorithm>
#include <numeric>

#include "attention/block_set.h"

namespace annulus {
namespace {

constexpr int kUnionTermsMax = 512;

// Points (u, v) ≥ 0 with u + v ≤ sum, modulo 2^64: differences of them fit 63 bits.
uint64_t Triangle(int64_t sum) {
  return sum < 0 ? 0 : static_cast<uint64_t>(static_cast<__int128>(sum + 1) * (sum + 2) / 2);
}

// Pairs with q in [q_begin, q_end), k in [k_begin, k_end), q − k ≤ d. Counted in the corner
// coordinates u = q − q_begin and v = k_end − 1 − k, where the bound is on u + v.
int64_t PairsUpTo(int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end, int64_t d) {
  const int64_t rows = q_end - q_begin;
  const int64_t keys = k_end - k_begin;
  const int64_t sum = std::min(d - q_begin + k_end - 1, rows + keys);
  return static_cast<int64_t>(Triangle(sum) - Triangle(sum - rows) - Triangle(sum - keys) +
                              Triangle(sum - rows - keys));
}

// Pairs of the shape's rows with its comb's keys in [begin, end), which the band may cut.
int64_t PairsAtEdge(const Shape& shape, int64_t begin, int64_t end) {
  int64_t pairs = 0;
  while (begin < end) {
    int64_t stop = end;
    if (!shape.comb.all()) {
      begin = shape.comb.NextFrom(begin);
      if (begin >= end) break;
      const int64_t into = FloorMod(begin - shape.comb.first, shape.comb.period);
      stop = std::min(end, begin + shape.comb.length - into);
    }
    pairs += PairsUpTo(shape.q_begin, shape.q_end, begin, stop, shape.d_max) -
             PairsUpTo(shape.q_begin, shape.q_end, begin, stop, shape.d_min - 1);
    begin = stop;
  }
  return pairs;
}

// Where two combs meet: a tooth of b begins `shift` after one of a. Each possible shift gives a
// comb of its own, with the least common multiple as its period.
void AppendCombs(const Shape& base, const Comb& a, const Comb& b, ShapeList* out) {
  const int64_t common = std::gcd(a.period, b.period);
  const int64_t low = 1 - b.length;
  for (int64_t shift = low + FloorMod(b.first - a.first - low, common); shift < a.length;
       shift += common) {
    const int64_t from = std::max<int64_t>(0, shift);
    const int64_t length = std::min(a.length, shift + b.length) - from;
    // The first common tooth that ends after k_begin.
    const CommonNumbers teeth =
        Meet(a.first + from, a.period, b.first - shift + from, b.period, base.k_begin - length + 1);
    if (!teeth.found || teeth.first >= base.k_end) continue;
    Shape piece = base;
    const int64_t first = static_cast<int64_t>(teeth.first);
    if (first + teeth.step >= base.k_end) {
      piece.k_begin = std::max(base.k_begin, first);
      piece.k_end = std::min(base.k_end, first + length);
      piece.comb = Comb{};
    } else {
      piece.comb = {first, length, static_cast<int64_t>(teeth.step)};
    }
    out->push_back(piece);
  }
}

// By ascending keys, so that each shape meets only those before it that reach as far.
absl::optional<int64_t> PairsOfUnion(ShapeList shapes, int* terms_left) {
  SortByKeys(&shapes);
  int64_t pairs = 0;
  ShapeList counted;  // what of the shape those before it hold already
  absl::InlinedVector<size_t, 12> reaching;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const auto ended = [&](size_t j) { return shapes[j].k_end <= shapes[i].k_begin; };
    reaching.erase(std::remove_if(reaching.begin(), reaching.end(), ended), reaching.end());
    counted.clear();
    for (const size_t j : reaching) AppendIntersection(shapes[i], shapes[j], &counted);
    reaching.push_back(i);
    pairs += PairsOf(shapes[i]);
    if (counted.empty()) continue;
    *terms_left -= static_cast<int>(std::min<size_t>(counted.size(), kUnionTermsMax));
    if (*terms_left < 0) return absl::nullopt;
    const absl::optional<int64_t> twice = PairsOfUnion(counted, terms_left);
    if (!twice.has_value()) return absl::nullopt;
    pairs -= *twice;
  }
  return pairs;
}

// The bits [begin, end) of a word, cut to [0, 64).
uint64_t RangeBits(int64_t begin, int64_t end) {
  begin = std::max<int64_t>(begin, 0);
  end = std::min<int64_t>(end, 64);
  return begin < end ? (~uint64_t{0} << begin) & (~uint64_t{0} >> (64 - end)) : 0;
}

uint64_t CombBits(const Comb& comb, int64_t base) {
  if (comb.all()) return ~uint64_t{0};
  uint64_t bits = 0;
  for (int64_t tooth = comb.first + FloorDiv(base - comb.first, comb.period) * comb.period;
       tooth < base + kBlockTokens; tooth += comb.period) {
    bits |= RangeBits(tooth - base, tooth - base + comb.length);
  }
  return bits;
}

}  // namespace

int64_t Comb::CountIn(int64_t begin, int64_t end) const {
  if (begin >= end) return 0;
  if (all()) return end - begin;
  const auto before = [this](int64_t key) {
    const int64_t teeth = FloorDiv(key - first, period);
    return teeth * length + std::min(key - first - teeth * period, length);
  };
  return before(end) - before(begin);
}

int64_t Comb::NextFrom(int64_t key) const {
  if (all()) return key;
  const int64_t into = FloorMod(key - first, period);
  return into < length ? key : key + period - into;
}

int64_t Comb::LastTo(int64_t key) const {
  if (all()) return key;
  const int64_t into = FloorMod(key - first, period);
  return into < length ? key : key - (into - length + 1);
}

bool Shape::Tighten() {
  k_begin = std::max(k_begin, q_begin - d_max);
  k_end = std::min(k_end, q_end - d_min);
  return q_begin < q_end && k_begin < k_end && d_min <= d_max;
}

void AppendShape(Shape shape, const ShapeWindow& window, ShapeList* out) {
  shape.q_begin = std::max(shape.q_begin, window.q_begin);
  shape.q_end = std::min(shape.q_end, window.q_end);
  shape.k_begin = std::max(shape.k_begin, window.k_begin);
  shape.k_end = std::min(shape.k_end, window.k_end);
  if (shape.Tighten()) out->push_back(shape);
}

void SortByKeys(ShapeList* shapes) {
  const auto by_begin = [](const Shape& a, const Shape& b) { return a.k_begin < b.k_begin; };
  if (!std::is_sorted(shapes->begin(), shapes->end(), by_begin)) {
    std::sort(shapes->begin(), shapes->end(), by_begin);
  }
}

void AppendIntersection(const Shape& a, const Shape& b, ShapeList* out) {
  Shape both;
  both.q_begin = std::max(a.q_begin, b.q_begin);
  both.q_end = std::min(a.q_end, b.q_end);
  both.k_begin = std::max(a.k_begin, b.k_begin);
  both.k_end = std::min(a.k_end, b.k_end);
  if (both.q_begin >= both.q_end || both.k_begin >= both.k_end) return;
  both.d_min = std::max(a.d_min, b.d_min);
  both.d_max = std::min(a.d_max, b.d_max);
  both.comb = a.comb.all() ? b.comb : a.comb;
  if (!both.Tighten()) return;
  if (a.comb.all() || b.comb.all() || a.comb == b.comb) {
    if (both.comb.NextFrom(both.k_begin) < both.k_end) out->push_back(both);
  } else {
    AppendCombs(both, a.comb, b.comb, out);
  }
}

int64_t PairsOf(const Shape& shape) {
  // Keys that every row sees. The band cuts fewer keys before and after them than there are rows.
  const int64_t begin = std::clamp(shape.q_end - 1 - shape.d_max, shape.k_begin, shape.k_end);
  const int64_t end = std::clamp(shape.q_begin - shape.d_min + 1, begin, shape.k_end);
  return PairsAtEdge(shape, shape.k_begin, begin) +
         (shape.q_end - shape.q_begin) * shape.comb.CountIn(begin, end) +
         PairsAtEdge(shape, end, shape.k_end);
}

absl::optional<int64_t> PairsOfUnion(const ShapeList& shapes) {
  int terms_left = kUnionTermsMax;
  return PairsOfUnion(shapes, &terms_left);
}

void AddToMask(const Shape& shape, int64_t q_block, int64_t k_block, uint64_t mask[64]) {
  const int64_t q_base = q_block * kBlockTokens;
  const int64_t k_base = k_block * kBlockTokens;
  if (shape.k_end <= k_base || shape.k_begin >= k_base + kBlockTokens) return;
  const uint64_t comb = CombBits(shape.comb, k_base);
  if (comb == 0) return;
  for (int64_t q = shape.q_begin; q < shape.q_end; ++q) {
    const int64_t begin = std::max(shape.k_begin, q - shape.d_max);
    const int64_t end = std::min(shape.k_end, q - shape.d_min + 1);
    mask[q - q_base] |= RangeBits(begin - k_base, end - k_base) & comb;
  }
}

}  // namespace annulus
