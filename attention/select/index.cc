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

// The weighted sum of what is positive, in f64 and in the order of the queries: a product of two
// f32 is exact there. What is no number counts as +∞.
float Weigh(const float* dots, const float* weights, int count) {
  double sum = 0;
  for (int j = 0; j < count; ++j) {
    const double product = double{weights[j]} * double{std::max(dots[j], 0.0f)};
    sum += product;
  }
  return std::isnan(sum) ? std::numeric_limits<float>::infinity() : static_cast<float>(sum);
}

// One row's list: its index queries, and the best units so far.
class ListOfRow {
 public:
  ListOfRow(const SelectRows& rows, int64_t row, int list)
      : of_(rows),
        queries_(static_cast<int>(rows.q.heads) / rows.heads.count),
        units_end_(rows.selector->CandidatesEnd(rows.q_begin + row, rows.kv_tokens)),
        top_(rows.selector->picks_of_candidates()) {
    const int dim = static_cast<int>(rows.q.dim), first = list * queries_;
    expanded_.resize(static_cast<size_t>(queries_ * dim));
    std::vector<float> q(static_cast<size_t>(dim));
    for (int j = 0; j < queries_; ++j) {
      Convert(rows.q.Row(row, first + j), rows.q.dtype, q.data(), DType::kF32, dim);
      rows.selector->Expand(q.data(), dim, expanded_.data() + j * dim);
    }
    if (rows.weights != nullptr) weights_ = rows.weights + row * rows.q.heads + first;
    if (queries_ > 1 || weights_ != nullptr) {
      dots_.resize(static_cast<size_t>(kBlockTokens * queries_));
    }
  }

  // Of tokens [begin, begin + count), whose rows are k [count, dim].
  void Take(int64_t begin, int64_t count, const float* k) {
    const int64_t unit_tokens = of_.selector->unit_tokens();
    count = std::min(count, units_end_ * unit_tokens - begin);
    if (count <= 0) return;
    Score(k, count);
    for (int64_t t = 0; t < count; ++t) {
      const auto unit = static_cast<int32_t>((begin + t) / unit_tokens);
      if (unit != unit_) End();
      unit_ = unit;
      best_ = std::max(best_, scores_[t]);
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

  void Score(const float* k, int64_t count) {
    const int dim = static_cast<int>(of_.q.dim);
    const auto tokens = static_cast<int>(count);
    if (dots_.empty()) {
      Scores(expanded_.data(), 1, dim, k, tokens, scores_);
      return;
    }
    Scores(expanded_.data(), queries_, dim, k, tokens, dots_.data());
    for (int64_t t = 0; t < count; ++t) {
      scores_[t] = Weigh(&dots_[t * queries_], weights_, queries_);
    }
  }

  const SelectRows& of_;
  const int queries_;
  const int64_t units_end_;
  std::vector<double> expanded_;  // [queries, dim]
  const float* weights_ = nullptr;
  std::vector<float> dots_;  // [tokens of a block, queries]
  float scores_[kBlockTokens];
  int32_t unit_ = -1;
  float best_ = kNone;
  TopUnits top_;
};

}  // namespace

absl::Status BestByIndex(const SelectRows& rows, int64_t first, int64_t count,
                         const SelectKeys& keys, absl::Span<const int64_t> blocks,
                         absl::Span<std::vector<Candidate>> best) {
  std::vector<ListOfRow> lists;
  lists.reserve(static_cast<size_t>(count * rows.heads.count));
  for (int list = 0; list < rows.heads.count; ++list) {
    for (int64_t r = first; r < first + count; ++r) lists.emplace_back(rows, r, list);
  }
  const int dim = static_cast<int>(rows.q.dim);
  const DType dtype = keys.kv->dtype();
  std::vector<float> k(static_cast<size_t>(kBlockTokens * dim));
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
    for (ListOfRow& list : lists) list.Take(block * kBlockTokens, tokens, k.data());
  }
  for (size_t i = 0; i < lists.size(); ++i) {
    const int64_t list = static_cast<int64_t>(i) / count, row = static_cast<int64_t>(i) % count;
    best[static_cast<size_t>(list * rows.q.tokens + first + row)] = std::move(lists[i]).TakeBest();
  }
  return absl::OkStatus();
}

}  // namespace annulus
