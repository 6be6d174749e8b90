#include "attention/select/summaries.h"

#include <algorithm>
#include <vector>

namespace annulus {
namespace {

constexpr size_t kSumsAtOnce = 8;  // dims are multiples of it

// The sums of the rows in f64, in their order.
void AddRows(const float* rows, int64_t count, int dim, float* to) {
  std::vector<double> sums(static_cast<size_t>(dim));
  for (int64_t r = 0; r < count; ++r) {
    const float* row = rows + r * dim;
    for (int c = 0; c < dim; ++c) sums[c] += row[c];
  }
  for (int c = 0; c < dim; ++c) to[c] = static_cast<float>(sums[c]);
}

void Bound(const float* rows, int64_t count, int dim, float* least, float* largest) {
  std::copy(rows, rows + dim, least);
  std::copy(rows, rows + dim, largest);
  for (int64_t r = 1; r < count; ++r) {
    const float* row = rows + r * dim;
    for (int c = 0; c < dim; ++c) {
      least[c] = std::min(row[c], least[c]);
      largest[c] = std::max(row[c], largest[c]);
    }
  }
}

}  // namespace

PageSummary::PageSummary(const Selector& selector, int head_dim)
    : kind(selector.summary()),
      dim(head_dim),
      width(selector.Width(head_dim)),
      part_tokens(std::min(selector.scored_tokens(), kBlockTokens)),
      parts(kBlockTokens / part_tokens),
      unit_tokens(selector.scored_tokens()) {}

void SummarisePage(const PageSummary& form, const std::byte* k, DType dtype, int64_t row_stride,
                   int64_t rows, float* to) {
  std::vector<float> values(static_cast<size_t>(form.part_tokens * form.dim));
  for (int64_t part = 0; part < form.PartsOf(rows); ++part, to += form.width) {
    const int64_t there = std::min(form.part_tokens, rows - part * form.part_tokens);
    for (int64_t r = 0; r < there; ++r) {
      const auto at = static_cast<size_t>((part * form.part_tokens + r) * row_stride);
      Convert(k + at * SizeOf(dtype), dtype, values.data() + r * form.dim, DType::kF32, form.dim);
    }
    if (form.kind == Summary::kRows) {
      std::fill(values.begin() + there * form.dim, values.end(), 0.0f);
      std::copy(values.begin(), values.end(), to);
    } else if (form.kind == Summary::kMean) {
      AddRows(values.data(), form.part_tokens, form.dim, to);
    } else {
      Bound(values.data(), form.part_tokens, form.dim, to, to + form.dim);
    }
  }
}

void SummariseUnits(const PageSummary& form, absl::Span<const float* const> pages, float* to) {
  if (form.kind == Summary::kRows) {
    std::copy(pages[0], pages[0] + form.page_floats(), to);
    return;
  }
  if (form.kind == Summary::kMinMax) {
    std::copy(pages[0], pages[0] + form.page_floats(), to);
    const int dim = form.dim;
    for (const float* page : pages.subspan(1)) {
      for (int c = 0; c < dim; ++c) to[c] = std::min(page[c], to[c]);
      for (int c = dim; c < 2 * dim; ++c) to[c] = std::max(page[c], to[c]);
    }
    return;
  }
  const auto tokens = static_cast<double>(form.unit_tokens);
  for (size_t c = 0; c < form.page_floats(); c += kSumsAtOnce) {
    double sums[kSumsAtOnce] = {};
    for (const float* page : pages) {
      for (size_t i = 0; i < kSumsAtOnce; ++i) sums[i] += page[c + i];
    }
    for (size_t i = 0; i < kSumsAtOnce; ++i) to[c + i] = static_cast<float>(sums[i] / tokens);
  }
}

}  // namespace annulus
