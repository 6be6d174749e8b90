// All scores of the rows of a RowSelector's lists. Thread-safe functions of values.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "attention/row_selector.h"
#include "attention/select/choose.h"

namespace annulus {

// How a call's queries lie in the rows of lists: a row's are those of the call at the positions
// that the row stands for. REQUIRES: a RowSelector's.
class ListRows {
 public:
  explicit ListRows(const SelectRows& rows)
      : selector_(*rows.selector->by_row()), queries_(rows.queries()), kv_tokens_(rows.kv_tokens) {}

  const RowSelector& selector() const { return selector_; }
  int64_t count() const { return queries_.size() == 0 ? 0 : RowOf(queries_.end - 1) + 1; }
  // Where the first row begins, before the call's first query perhaps.
  int64_t begin() const { return queries_.begin / row_tokens() * row_tokens(); }
  TokenRange Queries(int64_t row) const { return Cut(begin() + row * row_tokens(), row_tokens()); }
  int64_t Groups(int64_t row) const {
    const TokenRange queries = Queries(row);
    return (queries.end - 1) / group_tokens() - queries.begin / group_tokens() + 1;
  }
  // The call's queries of a group, and how many of the group come before them.
  TokenRange Group(int64_t row, int64_t group, int64_t* missing) const {
    const int64_t first = (Queries(row).begin / group_tokens() + group) * group_tokens();
    const TokenRange queries = Cut(first, group_tokens());
    *missing = queries.begin - first;
    return queries;
  }
  int64_t Units(int64_t row) const { return selector_.UnitsEnd(Queries(row).end - 1, kv_tokens_); }

 private:
  int64_t row_tokens() const { return selector_.form().row_tokens; }
  int64_t group_tokens() const { return selector_.form().group_tokens; }
  int64_t RowOf(int64_t q) const { return (q - begin()) / row_tokens(); }
  TokenRange Cut(int64_t first, int64_t tokens) const {
    return {std::max(first, queries_.begin), std::min(first + tokens, queries_.end)};
  }

  const RowSelector& selector_;
  const TokenRange queries_;
  const int64_t kv_tokens_;
};

// Takes the scores of a group of a row, of head rows.heads.first + `head`, by those of the units
// that the row is scored by.
using TakeScores =
    absl::FunctionRef<void(int head, int64_t row, int64_t group, absl::Span<const float> scores)>;

// Scores the groups of all rows of those of rows.heads that read `kv_head` by `units`.
void ScoreRows(const SelectRows& rows, int kv_head, const ScoredBy& units, TakeScores take);

}  // namespace annulus
