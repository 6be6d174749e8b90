#include "attention/select/choose.h"

#include <algorithm>
#include <utility>

#include "attention/cpu/fetch_line.h"
#include "attention/select/scores.h"
#include "attention/select/top_units.h"
#include "base/status.h"

namespace annulus {
namespace {

// Summaries of pages, found or made.
class Pages {
 public:
  Pages(const PageSummary& form, const SelectKeys& keys, int kv_head)
      : form_(form), keys_(keys), kv_head_(kv_head) {}

  const float* Known(int64_t block) const {
    return keys_.known ? keys_.known(kv_head_, block) : nullptr;
  }

  // Of a block's first `rows` rows.
  absl::Status Make(int64_t block, int64_t rows, float* to) {
    const KvPage& page = keys_.kv->page(kv_head_, block);
    const std::byte* k = page.k;
    if (keys_.kv->memory() != MemoryKind::kHost) {
      const auto elements = static_cast<size_t>((rows - 1) * page.k_row_stride + form_.dim);
      staged_.resize(elements * SizeOf(keys_.kv->dtype()));
      ANNULUS_RETURN_IF_ERROR(keys_.space->CopyOut(k, staged_.data(), staged_.size()));
      k = staged_.data();
    }
    SummarisePage(form_, k, keys_.kv->dtype(), page.k_row_stride, rows, to);
    return absl::OkStatus();
  }

 private:
  const PageSummary& form_;
  const SelectKeys& keys_;
  const int kv_head_;
  std::vector<std::byte> staged_;
};

// Units within pages: where a page's sums are not what its units are scored by, they are made so.
absl::Status AddPages(const PageSummary& form, Pages& pages, absl::Span<const int64_t> blocks,
                      int64_t kv_tokens, ScoredBy* to) {
  const size_t floats = form.page_floats();
  const auto rows_of = [&](int64_t block) {
    return std::min(kBlockTokens, kv_tokens - block * kBlockTokens);
  };
  std::vector<const float*> found;
  size_t missing = 0;
  for (const int64_t block : blocks) {
    found.push_back(rows_of(block) == kBlockTokens ? pages.Known(block) : nullptr);
    missing += found.back() == nullptr || form.kind == Summary::kMean ? 1 : 0;
  }
  to->own.resize(missing * floats);
  to->units.reserve(blocks.size() * static_cast<size_t>(form.parts));
  to->summaries.reserve(blocks.size() * static_cast<size_t>(form.parts));
  float* own = to->own.data();
  std::vector<float> made(floats);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const int64_t block = blocks[i], rows = rows_of(block);
    const float* known = found[i];
    if (known == nullptr) {
      ANNULUS_RETURN_IF_ERROR(pages.Make(block, rows, made.data()));
      known = made.data();
    }
    if (known == made.data() || form.kind == Summary::kMean) {
      SummariseUnits(form, {&known, 1}, own);
      known = own;
      own += floats;
    }
    for (int64_t part = 0; part < form.PartsOf(rows); ++part) {
      to->units.push_back(static_cast<int32_t>(block * form.parts + part));
      to->summaries.push_back(known + part * form.width);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ScoredBy> SummariesOf(const PageSummary& form, const SelectKeys& keys, int kv_head,
                                     absl::Span<const int64_t> chunks, int64_t kv_tokens) {
  ScoredBy scored;
  Pages pages(form, keys, kv_head);
  if (form.unit_tokens <= kBlockTokens) {
    ANNULUS_RETURN_IF_ERROR(AddPages(form, pages, chunks, kv_tokens, &scored));
    return scored;
  }
  const int64_t blocks = form.unit_tokens / kBlockTokens;
  scored.own.resize(chunks.size() * form.page_floats());
  std::vector<float> made(static_cast<size_t>(blocks) * form.page_floats());
  // Of a unit and, fetched meanwhile, of the one that comes next.
  std::vector<const float*> of_unit(static_cast<size_t>(blocks)), of_next(of_unit.size());
  const auto find = [&](size_t i) {
    for (int64_t b = 0; b < blocks; ++b) {
      of_next[b] = pages.Known(chunks[i] * blocks + b);
      if (of_next[b] != nullptr) cpu::RowToL1(of_next[b], form.page_floats() * sizeof(float));
    }
  };
  if (!chunks.empty()) find(0);
  for (size_t i = 0; i < chunks.size(); ++i) {
    of_unit.swap(of_next);
    if (i + 1 < chunks.size()) find(i + 1);
    for (int64_t b = 0; b < blocks; ++b) {
      if (of_unit[b] != nullptr) continue;
      float* to = made.data() + static_cast<size_t>(b) * form.page_floats();
      ANNULUS_RETURN_IF_ERROR(pages.Make(chunks[i] * blocks + b, kBlockTokens, to));
      of_unit[b] = to;
    }
    float* own = scored.own.data() + i * form.page_floats();
    SummariseUnits(form, of_unit, own);
    scored.units.push_back(static_cast<int32_t>(chunks[i]));
    scored.summaries.push_back(own);
  }
  return scored;
}

absl::Status PageSummariesOf(const PageSummary& form, const SelectKeys& keys, int kv_head,
                             absl::Span<const int64_t> blocks, float* to) {
  Pages pages(form, keys, kv_head);
  for (const int64_t block : blocks) {
    if (const float* known = pages.Known(block)) {
      std::copy(known, known + form.page_floats(), to);
    } else {
      ANNULUS_RETURN_IF_ERROR(pages.Make(block, kBlockTokens, to));
    }
    to += form.page_floats();
  }
  return absl::OkStatus();
}

void BestOf(const SelectRows& rows, int kv_head, int64_t first, int64_t count,
            const ScoredBy& units, absl::Span<std::vector<Candidate>> best) {
  const Selector& selector = *rows.selector;
  const int dim = static_cast<int>(rows.q.dim), width = selector.Width(dim);
  const HeadRange heads =
      Intersect(rows.heads, {kv_head * rows.group, rows.group});  // that read the KV head
  struct Row {
    size_t place;  // in best
    int64_t own;
    TopUnits top;
  };
  std::vector<Row> batch;
  std::vector<double> expanded(kRowsAtOnce * static_cast<size_t>(width));
  std::vector<float> q(static_cast<size_t>(dim));
  PiecewiseScores scorer;
  const auto score = [&] {
    int64_t own = 0;
    for (const Row& row : batch) own = std::max(own, row.own);
    const auto end = static_cast<size_t>(
        std::lower_bound(units.units.begin(), units.units.end(), own) - units.units.begin());
    const auto offer = [&](size_t u, size_t count, const float* scores) {
      for (size_t r = 0; r < batch.size(); ++r) {
        Row& row = batch[r];
        for (size_t s = 0; s < count && units.units[u + s] < row.own; ++s) {
          row.top.Offer({scores[s * batch.size() + r], units.units[u + s]});
        }
      }
    };
    scorer.Score(expanded.data(), batch.size(), width, {units.summaries.data(), end}, offer);
    for (Row& row : batch) {
      best[row.place] = std::move(row.top).Take();
      std::sort(best[row.place].begin(), best[row.place].end(), Before);
    }
    batch.clear();
  };
  for (int64_t r = first; r < first + count; ++r) {
    const int64_t own = selector.OwnUnit(rows.q_begin + r, rows.kv_tokens);
    for (int head = heads.first; head < heads.end(); ++head) {
      const int at = head - rows.heads.first;
      Convert(rows.q.Row(r, at), rows.q.dtype, q.data(), DType::kF32, dim);
      selector.Expand(q.data(), dim, expanded.data() + static_cast<int64_t>(batch.size()) * width);
      batch.push_back({static_cast<size_t>(at * rows.q.tokens + r), own,
                       TopUnits(selector.picks_of_candidates())});
      if (batch.size() == kRowsAtOnce) score();
    }
  }
  if (!batch.empty()) score();
}

}  // namespace annulus
