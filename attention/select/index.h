// What one holder of a track's rows does for a selection by an index (attention/selector.h): it
// scores all tokens, or it looks at all in f32 first (screen.h) and scores those that may count.
// Both come to the same. Thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "attention/select/choose.h"
#include "attention/select/screen.h"

namespace annulus {

// For the rows [first, first + count) of all lists: the best picks_of_candidates, or all, of the
// units that have tokens in `blocks`, which ascend, by the scores of those tokens; in the order of
// Before(). Those of row r of list l go to best[l · q.tokens + r]. Errors are those of the memory
// space.
absl::Status BestByIndex(const SelectRows& rows, int64_t first, int64_t count,
                         const SelectKeys& keys, absl::Span<const int64_t> blocks,
                         absl::Span<std::vector<Candidate>> best);

// The index queries of a row, whose products with tokens all of its lists share.
class IndexQueries {
 public:
  IndexQueries(const SelectRows& rows, int64_t row);

  // scores [k.size(), lists] of tokens by their rows k; `dots` has room for [k.size(), heads].
  void Score(absl::Span<const float* const> k, float* dots, float* scores) const;
  // The same of one list; scores [k.size()].
  void ScoreList(int list, absl::Span<const float* const> k, float* dots, float* scores) const;

  absl::Span<const double> expanded() const { return expanded_; }
  const float* weights() const { return weights_; }

 private:
  const int dim_;
  const int heads_;
  std::vector<double> expanded_;  // [heads, dim]
  const float* weights_ = nullptr;
};

// BestByIndex of a few rows by parts of the blocks, no unit in two of them: first Look at each
// part, then, after all looks, the Best of each. Calls of different parts may run at once.
class ScreenedIndex {
 public:
  // Whether it costs less than scoring all. `blocks`: of all parts, ascending.
  static bool Pays(const SelectRows& rows, int64_t first, int64_t count, const SelectKeys& keys,
                   absl::Span<const int64_t> blocks);

  // REQUIRES: `rows` outlives it; keys in the host's memory, at every call the same.
  ScreenedIndex(const SelectRows& rows, int64_t first, int64_t count, int64_t parts);

  void Look(int64_t part, const SelectKeys& keys, absl::Span<const int64_t> blocks);
  // Of the part's units all that can be among the best of all parts, perhaps more, at `best` as
  // BestByIndex does.
  void Best(int64_t part, const SelectKeys& keys, absl::Span<const int64_t> blocks,
            absl::Span<std::vector<Candidate>> best) const;

 private:
  struct Unit {
    float high;  // than which its score is not higher
    int32_t unit;
  };
  class ListLook;
  // The tokens of a block that the r-th row may see.
  int64_t Seen(int64_t r, int64_t block) const;
  KeyRows RowsOf(const KvTable& kv, int64_t block) const;
  // The best of such units of the r-th row's list, which ascend, by their tokens in the blocks.
  std::vector<Candidate> BestOfUnits(int64_t r, int list, const SelectKeys& keys,
                                     absl::Span<const int64_t> blocks,
                                     absl::Span<const Unit> units) const;

  const SelectRows& of_;
  const int64_t first_;
  const int64_t count_;
  const int64_t lists_;
  std::vector<IndexQueries> queries_;    // [rows]
  std::vector<ScreenQueries> looks_;     // [rows]
  std::deque<Floor> floors_;             // [rows, lists]
  std::vector<std::vector<Unit>> kept_;  // [parts, rows, lists], ascending
};

}  // namespace annulus
