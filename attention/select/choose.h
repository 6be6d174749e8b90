// What one holder of keys does for a selection: summaries of what it holds, scores of the units
// that it holds whole, and each row's best of them. Thread-safe functions of values.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "annulus/tensor.h"
#include "attention/kv_view.h"
#include "attention/memory_space.h"
#include "attention/ranges.h"
#include "attention/select/summaries.h"
#include "attention/selector.h"

namespace annulus {

// The queries of a selection.
struct SelectRows {
  const Selector* selector = nullptr;
  // [rows, heads.count, head_dim], rounded to the keys' dtype; of an index as many heads for each
  // list.
  TensorView q;
  const float* weights = nullptr;  // [rows, q.heads], of an index that weighs
  int64_t q_begin = 0;
  HeadRange heads;        // that have lists
  int group = 1;          // query heads of a KV head
  int64_t kv_tokens = 0;  // keys at and beyond it do not exist
  float scale = 0;        // of scores, where a word weighs them; 0: 1/√head_dim

  TokenRange queries() const { return {q_begin, q_begin + q.tokens}; }
};

// Where keys lie, and the summaries of pages that are there already.
struct SelectKeys {
  const KvTable* kv = nullptr;
  MemorySpace* space = nullptr;  // of kv's pages
  // [parts, width] of a page; null where it has none. May be absent.
  std::function<const float*(int kv_head, int64_t block)> known = {};
};

// Units of one KV head, ascending, and what they are scored by.
struct ScoredBy {
  std::vector<int32_t> units;
  std::vector<const float*> summaries;
  std::vector<float> own;  // that are not the keys' holder's
};

// Of whole units (PageSummary::counts_cut): where units lie within blocks those of the blocks, else
// units of such numbers. `chunks` has either, ascending; of an open block the units that are whole
// are meant. Errors are those of the memory space.
absl::StatusOr<ScoredBy> SummariesOf(const PageSummary& form, const SelectKeys& keys, int kv_head,
                                     absl::Span<const int64_t> chunks, int64_t kv_tokens);

// The page summaries of some blocks of whole rows, one after the other, at `to`.
absl::Status PageSummariesOf(const PageSummary& form, const SelectKeys& keys, int kv_head,
                             absl::Span<const int64_t> blocks, float* to);

// For the rows [first, first + count) of the query heads that read `kv_head`: the best
// picks_of_candidates, or all, of the units before their own one, in the order of Before(). Those
// of row r of the h-th of rows.heads go to best[h · q.tokens + r].
void BestOf(const SelectRows& rows, int kv_head, int64_t first, int64_t count,
            const ScoredBy& units, absl::Span<std::vector<Candidate>> best);

}  // namespace annulus
