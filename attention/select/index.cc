#include "attention/select/index.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "attention/select/scores.h"
#include "attention/select/top_units.h"
#include "base/status.h"

namespace annulus {
namespace {

// The best units so far of one of a row's lists.
class ListOfRow {
 public:
  explicit ListOfRow(int64_t picks) : top_(picks) {}

  // Of tokens [begin, begin + count), whose scores lie `stride` apart.
  void Take(int64_t begin, int64_t count, int64_t unit_tokens, const float* scores,
            int64_t stride) {
    for (int64_t t = 0; t < count;) {
      const int64_t unit = (begin + t) / unit_tokens;
      const int64_t end = std::min(count, (unit + 1) * unit_tokens - begin);
      if (unit != unit_) End();
      unit_ = static_cast<int32_t>(unit);
      for (; t < end; ++t) {
        const float score = scores[t * stride];
        // One that is no number comes before all others, as in TopUnits.
        best_ = std::isnan(score) ? -kNone : std::max(best_, score);
      }
    }
  }

  std::vector<Candidate> TakeBest() && {
    End();
    std::vector<Candidate> best = std::move(top_).Take();
    std::sort(best.begin(), best.end(), Before);
    return best;
  }

 private:
  static constexpr float kNone = -std::numeric_limits<float>::infinity();

  void End() {
    if (unit_ >= 0) top_.Offer({best_, unit_});
    best_ = kNone;
  }

  int32_t unit_ = -1;
  float best_ = kNone;
  TopUnits top_;
};

constexpr float kLowest = -std::numeric_limits<float>::infinity();

}  // namespace

IndexQueries::IndexQueries(const SelectRows& rows, int64_t row)
    : dim_(static_cast<int>(rows.q.dim)), heads_(static_cast<int>(rows.q.heads)) {
  expanded_.resize(static_cast<size_t>(heads_ * dim_));
  std::vector<float> q(static_cast<size_t>(dim_));
  for (int j = 0; j < heads_; ++j) {
    Convert(rows.q.Row(row, j), rows.q.dtype, q.data(), DType::kF32, dim_);
    rows.selector->Expand(q.data(), dim_, expanded_.data() + j * dim_);
  }
  if (rows.weights != nullptr) weights_ = rows.weights + row * heads_;
}

void IndexQueries::Score(absl::Span<const float* const> k, float* dots, float* scores) const {
  Scores(expanded_.data(), heads_, dim_, k, weights_ == nullptr ? scores : dots);
  if (weights_ == nullptr) return;
  WeighedScores(dots, static_cast<int>(k.size()), weights_, heads_, scores);
}

void IndexQueries::ScoreList(int list, absl::Span<const float* const> k, float* dots,
                             float* scores) const {
  if (weights_ != nullptr) return Score(k, dots, scores);
  Scores(expanded_.data() + list * dim_, 1, dim_, k, scores);
}

absl::Status BestByIndex(const SelectRows& rows, int64_t first, int64_t count,
                         const SelectKeys& keys, absl::Span<const int64_t> blocks,
                         absl::Span<std::vector<Candidate>> best) {
  const Selector& selector = *rows.selector;
  const int lists = rows.heads.count, dim = static_cast<int>(rows.q.dim);
  std::vector<IndexQueries> scored;
  std::vector<ListOfRow> tops(static_cast<size_t>(count * lists),
                              ListOfRow(selector.picks_of_candidates()));  // [rows, lists]
  for (int64_t r = first; r < first + count; ++r) scored.emplace_back(rows, r);
  const DType dtype = keys.kv->dtype();
  std::vector<float> k(static_cast<size_t>(kBlockTokens * dim));
  const std::vector<const float*> k_rows = PlacesOf(k.data(), kBlockTokens, dim);
  std::vector<float> dots(static_cast<size_t>(kBlockTokens * rows.q.heads));
  std::vector<float> scores(static_cast<size_t>(kBlockTokens * lists));
  std::vector<std::byte> staged;
  for (const int64_t block : blocks) {
    const KvPage& page = keys.kv->page(0, block);
    const int64_t tokens = std::min(kBlockTokens, rows.kv_tokens - block * kBlockTokens);
    const std::byte* from = page.k;
    if (keys.kv->memory() != MemoryKind::kHost) {
      const auto elements = static_cast<size_t>((tokens - 1) * page.k_row_stride + dim);
      staged.resize(elements * SizeOf(dtype));
      ANNULUS_RETURN_IF_ERROR(keys.space->CopyOut(from, staged.data(), staged.size()));
      from = staged.data();
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const auto at = static_cast<size_t>(t * page.k_row_stride) * SizeOf(dtype);
      Convert(from + at, dtype, k.data() + t * dim, DType::kF32, dim);
    }
    for (int64_t r = 0; r < count; ++r) {
      const int64_t begin = block * kBlockTokens;
      const int64_t end = selector.CandidatesEnd(rows.q_begin + first + r, rows.kv_tokens);
      const int64_t seen = std::min(tokens, end * selector.unit_tokens() - begin);
      if (seen <= 0) continue;
      scored[r].Score({k_rows.data(), static_cast<size_t>(seen)}, dots.data(), scores.data());
      for (int list = 0; list < lists; ++list) {
        tops[r * lists + list].Take(begin, seen, selector.unit_tokens(), &scores[list], lists);
      }
    }
  }
  for (int64_t i = 0; i < count * lists; ++i) {
    const auto place = static_cast<size_t>(i % lists * rows.q.tokens + first + i / lists);
    best[place] = std::move(tops[static_cast<size_t>(i)]).TakeBest();
  }
  return absl::OkStatus();
}

bool ScreenedIndex::Pays(const SelectRows& rows, int64_t first, int64_t count,
                         const SelectKeys& keys, absl::Span<const int64_t> blocks) {
  constexpr int64_t kRowsMax = 8;  // of which bounds are kept at once
  // Fewer queries leave lanes of vectors without one.
  constexpr int64_t kQueriesMin = 8;
  // A look costs half of what scores in f64 do, or less, and what it leaves is to be little beside
  // that; and threads wait for each other once more.
  constexpr int64_t kUnitsOfPick = 8, kProductsMin = 1 << 17;
  const Selector& selector = *rows.selector;
  const int64_t picks = selector.picks_of_candidates(), unit_tokens = selector.unit_tokens();
  const int64_t end = selector.CandidatesEnd(rows.q_begin + first, rows.kv_tokens) * unit_tokens;
  const auto seen = std::lower_bound(blocks.begin(), blocks.end(), end / kBlockTokens);
  const int64_t tokens = (seen - blocks.begin()) * kBlockTokens;
  return count <= kRowsMax && rows.q.heads >= kQueriesMin &&
         tokens * rows.q.heads >= kProductsMin && picks > 0 &&
         tokens / unit_tokens / kUnitsOfPick >= picks && keys.kv->memory() == MemoryKind::kHost;
}

ScreenedIndex::ScreenedIndex(const SelectRows& rows, int64_t first, int64_t count, int64_t parts)
    : of_(rows),
      first_(first),
      count_(count),
      lists_(rows.heads.count),
      kept_(static_cast<size_t>(parts * count * rows.heads.count)) {
  for (int64_t r = first; r < first + count; ++r) {
    const IndexQueries& queries = queries_.emplace_back(rows, r);
    looks_.emplace_back(queries.expanded(), static_cast<int>(rows.q.dim), queries.weights());
    for (int64_t list = 0; list < lists_; ++list) {
      floors_.emplace_back(rows.selector->picks_of_candidates());
    }
  }
}

int64_t ScreenedIndex::Seen(int64_t r, int64_t block) const {
  const int64_t begin = block * kBlockTokens;
  const int64_t units = of_.selector->CandidatesEnd(of_.q_begin + first_ + r, of_.kv_tokens);
  return std::min(
      {kBlockTokens, of_.kv_tokens - begin, units * of_.selector->unit_tokens() - begin});
}

// Those of a block that a row of the call sees.
KeyRows ScreenedIndex::RowsOf(const KvTable& kv, int64_t block) const {
  int64_t seen = 0;
  for (int64_t r = 0; r < count_; ++r) seen = std::max(seen, Seen(r, block));
  const KvPage& page = kv.page(0, block);
  return {page.k, static_cast<size_t>(page.k_row_stride) * SizeOf(kv.dtype()),
          static_cast<int>(seen), kv.dtype()};
}

// What a look at a part finds of one list.
class ScreenedIndex::ListLook {
 public:
  ListLook(Floor* floor, std::vector<Unit>* kept) : floor_(*floor), kept_(*kept) {}

  // Of some tokens of a unit; those of one unit come one after the other.
  void Take(int64_t unit, float highest, float error) {
    if (unit != unit_) End();
    unit_ = static_cast<int32_t>(unit);
    const bool known = error < -kLowest;
    low_ = std::max(low_, known ? highest - error : kLowest);
    high_ = std::max(high_, known ? highest + error : -kLowest);
  }

  float floor() const { return floor_.value(); }

  // After the last unit.
  void Finish() {
    End();
    floor_.Raise(lows_);
    lows_.clear();
  }

 private:
  static constexpr size_t kLowsAtOnce = 1024;  // so that few threads wait

  void End() {
    if (unit_ >= 0 && high_ >= floor()) {
      kept_.push_back({high_, unit_});
      lows_.push_back(low_);
      if (lows_.size() == kLowsAtOnce) {
        floor_.Raise(lows_);
        lows_.clear();
      }
    }
    low_ = high_ = kLowest;
  }

  Floor& floor_;
  std::vector<Unit>& kept_;
  std::vector<float> lows_;
  int32_t unit_ = -1;
  float low_ = kLowest;
  float high_ = kLowest;
};

void ScreenedIndex::Look(int64_t part, const SelectKeys& keys, absl::Span<const int64_t> blocks) {
  const int64_t unit_tokens = of_.selector->unit_tokens();
  std::vector<ListLook> lists;
  for (size_t i = 0; i < floors_.size(); ++i) {
    lists.emplace_back(&floors_[i], &kept_[static_cast<size_t>(part) * floors_.size() + i]);
  }
  const bool by_pairs = keys.kv->dtype() == DType::kBF16 &&
                        std::all_of(looks_.begin(), looks_.end(),
                                    [](const ScreenQueries& look) { return look.by_pairs(); });
  ScreenBlock rows(static_cast<int>(of_.q.dim), by_pairs);
  std::vector<float> scores(looks_[0].score_floats()), errors(static_cast<size_t>(lists_));
  std::vector<float> highest(looks_[0].stride());
  KeyRows next = blocks.empty() ? KeyRows() : RowsOf(*keys.kv, blocks[0]);
  for (size_t b = 0; b < blocks.size(); ++b) {
    const int64_t begin = blocks[b] * kBlockTokens;
    const KeyRows taken = next;
    next = b + 1 < blocks.size() ? RowsOf(*keys.kv, blocks[b + 1]) : KeyRows();
    if (taken.count == 0) continue;
    rows.Take(taken, next);
    for (int64_t r = 0; r < count_; ++r) {
      const ScreenQueries& look = looks_[static_cast<size_t>(r)];
      const int64_t seen = Seen(r, blocks[b]);
      if (seen <= 0) continue;
      look.Look(rows, static_cast<int>(seen), scores.data(), errors.data());
      HighestOf(scores.data(), static_cast<int>(seen), look.stride(), highest.data());
      for (int64_t list = 0; list < lists_; ++list) {
        ListLook& of_list = lists[static_cast<size_t>(r * lists_ + list)];
        const float error = errors[static_cast<size_t>(list)];
        if (unit_tokens >= kBlockTokens) {
          of_list.Take(begin / unit_tokens, highest[static_cast<size_t>(list)], error);
          continue;
        }
        const float floor = of_list.floor();
        if (highest[static_cast<size_t>(list)] + error < floor) continue;
        const float* score = scores.data() + list;
        for (int64_t t = 0; t < seen; ++t, score += look.stride()) {
          if (*score + error < floor) continue;
          of_list.Take((begin + t) / unit_tokens, *score, error);
        }
      }
    }
  }
  for (ListLook& list : lists) list.Finish();
}

void ScreenedIndex::Best(int64_t part, const SelectKeys& keys, absl::Span<const int64_t> blocks,
                         absl::Span<std::vector<Candidate>> best) const {
  for (size_t i = 0; i < floors_.size(); ++i) {
    std::vector<Unit> units = kept_[static_cast<size_t>(part) * floors_.size() + i];
    const float floor = floors_[i].value();
    std::erase_if(units, [&](const Unit& unit) { return unit.high < floor; });
    const auto r = static_cast<int64_t>(i) / lists_, list = static_cast<int64_t>(i) % lists_;
    best[static_cast<size_t>(list * of_.q.tokens + first_ + r)] =
        BestOfUnits(r, static_cast<int>(list), keys, blocks, units);
  }
}

std::vector<Candidate> ScreenedIndex::BestOfUnits(int64_t r, int list, const SelectKeys& keys,
                                                  absl::Span<const int64_t> blocks,
                                                  absl::Span<const Unit> units) const {
  const int64_t dim = of_.q.dim, unit_tokens = of_.selector->unit_tokens();
  std::vector<float> k(static_cast<size_t>(kBlockTokens * dim)), scores(kBlockTokens);
  std::vector<float> dots(static_cast<size_t>(kBlockTokens * of_.q.heads));
  const std::vector<const float*> places = PlacesOf(k.data(), kBlockTokens, static_cast<int>(dim));
  ListOfRow top(of_.selector->picks_of_candidates());
  auto block = blocks.begin();
  for (auto unit = units.begin(); unit != units.end(); ++block) {
    block = std::lower_bound(block, blocks.end(), unit->unit * unit_tokens / kBlockTokens);
    if (block == blocks.end()) break;
    const int64_t begin = *block * kBlockTokens, end = begin + Seen(r, *block);
    const KeyRows rows = RowsOf(*keys.kv, *block);
    std::vector<TokenRange> taken;
    size_t count = 0;
    for (auto of = unit; of != units.end() && of->unit * unit_tokens < end; ++of) {
      const int64_t first = of->unit * unit_tokens;
      const TokenRange range = {std::max(begin, first), std::min(end, first + unit_tokens)};
      taken.push_back(range);
      for (int64_t t = range.begin; t < range.end; ++t, ++count) {
        Convert(rows.Row(static_cast<int>(t - begin)), rows.dtype,
                k.data() + count * static_cast<size_t>(dim), DType::kF32, dim);
      }
    }
    queries_[static_cast<size_t>(r)].ScoreList(list, {places.data(), count}, dots.data(),
                                               scores.data());
    const float* score = scores.data();
    for (const TokenRange& range : taken) {
      top.Take(range.begin, range.size(), unit_tokens, score, 1);
      score += std::max<int64_t>(0, range.size());
    }
    const int64_t next = begin + kBlockTokens;
    while (unit != units.end() && (int64_t{unit->unit} + 1) * unit_tokens <= next) ++unit;
  }
  return std::move(top).TakeBest();
}

}  // namespace annulus
