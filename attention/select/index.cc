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

// The index queries of a row, whose products with tokens all of its lists share.
class Row {
 public:
  Row(const SelectRows& rows, int64_t row) : of_(rows), heads_(static_cast<int>(rows.q.heads)) {
    const int dim = static_cast<int>(rows.q.dim);
    expanded_.resize(static_cast<size_t>(heads_ * dim));
    std::vector<float> q(static_cast<size_t>(dim));
    for (int j = 0; j < heads_; ++j) {
      Convert(rows.q.Row(row, j), rows.q.dtype, q.data(), DType::kF32, dim);
      rows.selector->Expand(q.data(), dim, expanded_.data() + j * dim);
    }
    if (rows.weights != nullptr) weights_ = rows.weights + row * heads_;
  }

  // scores [k.size(), lists] of tokens by their rows k; `dots` has room for [k.size(), heads].
  void Score(absl::Span<const float* const> k, float* dots, float* scores) const {
    const int dim = static_cast<int>(of_.q.dim);
    Scores(expanded_.data(), heads_, dim, k, weights_ == nullptr ? scores : dots);
    if (weights_ == nullptr) return;
    WeighedScores(dots, static_cast<int>(k.size()), weights_, heads_, scores);
  }

 private:
  const SelectRows& of_;
  const int heads_;
  std::vector<double> expanded_;  // [heads, dim]
  const float* weights_ = nullptr;
};

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

}  // namespace

absl::Status BestByIndex(const SelectRows& rows, int64_t first, int64_t count,
                         const SelectKeys& keys, absl::Span<const int64_t> blocks,
                         absl::Span<std::vector<Candidate>> best) {
  const Selector& selector = *rows.selector;
  const int lists = rows.heads.count, dim = static_cast<int>(rows.q.dim);
  std::vector<Row> scored;
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

}  // namespace annulus
