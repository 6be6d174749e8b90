// Summaries of units (attention/selector.h), from the K rows of pages. A page of 64 tokens has its
// own: what units within it are scored by, or a part of what larger units are. Rows of a unit count
// in their order, pages in theirs, so that a summary does not depend on who makes it.
// Thread-safe functions of values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "annulus/dtype.h"
#include "attention/block_set.h"
#include "attention/selector.h"

namespace annulus {

// How the summaries of a page lie, all f32: for each part, a unit within the page or the whole
// page, the sums of each dim (kMean: in f64 over the rows, then rounded), least and largest, or the
// rows.
struct PageSummary {
  PageSummary(const Selector& selector, int head_dim);

  size_t page_floats() const { return static_cast<size_t>(parts * width); }

  Summary kind;
  int dim;
  int width;            // f32 of a part
  int64_t part_tokens;  // of a part of a page
  int64_t parts;        // of a page
  int64_t unit_tokens;

  // Whether a unit that the context's end cuts is one.
  bool counts_cut() const { return kind == Summary::kRows; }
  // Of the page's first `rows` rows.
  int64_t PartsOf(int64_t rows) const {
    return (rows + (counts_cut() ? part_tokens - 1 : 0)) / part_tokens;
  }
  // Whether their pages' summaries are the same, whatever units are made of them.
  bool SamePages(const PageSummary& other) const {
    return kind == other.kind && dim == other.dim && part_tokens == other.part_tokens;
  }
};

// Of the parts (PartsOf) of a page's first `rows` rows: k [rows, dim] of `dtype`, rows
// `row_stride` elements apart. `to` [parts, width].
void SummarisePage(const PageSummary& form, const std::byte* k, DType dtype, int64_t row_stride,
                   int64_t rows, float* to);

// What units are scored by. Of units of whole pages: `pages` has theirs, in ascending order, and
// `to` [width] gets one; of units within a page: one page, and `to` [parts, width] gets all.
void SummariseUnits(const PageSummary& form, absl::Span<const float* const> pages, float* to);

}  // namespace annulus
