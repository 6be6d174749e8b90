// Selector: a word of the pattern language whose keys are chosen by data, from what the context
// holds and each query. It cuts the context into units of tokens. A query sees some whole units
// before its own one, those of the highest scores, and of its own one the keys up to itself; or, as
// an index may say, its own one where that scores high enough. What is scored are summaries of the
// context's keys, by the query itself, or the rows of a track, by index queries of the call.
// A score depends on the query's row and on the unit alone, never on tile, thread or worker, and
// Before() leaves no ties: so the same keys are chosen at every number of workers.
// Implementations are in select/, a file each. Immutable values, shared between threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "attention/ranges.h"

namespace annulus {

// What a unit is scored by, of its K rows alone; f32.
enum class Summary {
  kMean,    // [head_dim]: the rows' mean
  kMinMax,  // [2, head_dim]: the least of each dim, then the largest; exact
  kRows,    // [unit, head_dim]: the rows themselves, 0 for those the context does not have
};

// How a word chooses by the rows of a track. A token's score by an index query is the dot product
// of its row with it; a unit's is the highest of its tokens. Where the track has several heads,
// list h looks at head h.
struct Index {
  int lists = 1;  // of a query: one for all heads, or one for each KV head
  // Each list has several index queries, and a token's score is the sum over them of their weights
  // times what is positive of theirs. Else each list has one.
  bool weighs = false;
  bool own_unit = true;  // is seen always, and counts; else it is a unit like those before it
  // What the track is: each of so many heads has a row for so many tokens.
  int heads = 1;
  int64_t ratio = 1;
};

// A unit that a query may see.
struct Candidate {
  float score = 0;
  int32_t unit = 0;
};

// The total order of candidates: the higher score first, of equal ones the lower unit.
inline bool Before(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.unit < b.unit);
}

class ColumnSelector;  // column_selector.h
class RowSelector;     // row_selector.h

class Selector {
 public:
  virtual ~Selector() = default;

  // Itself where it chooses by the weights of a prompt's last queries, else null.
  virtual const ColumnSelector* by_column() const { return nullptr; }
  // Itself where it picks from all scores of a row, else null.
  virtual const RowSelector* by_row() const { return nullptr; }

  // Whether each query sees as many units, picks(), whatever the scores are.
  bool picks_alike() const { return by_column() == nullptr && by_row() == nullptr; }

  // Whether it picks each query's best units by scores of the context's keys.
  bool by_units() const { return picks_alike() && !index_.has_value(); }

  // Whether the word chooses for such queries, of a step or of a prompt: some need a prompt's.
  virtual bool ChoosesFor(TokenRange queries, int64_t kv_tokens, bool step) const {
    (void)queries, (void)kv_tokens, (void)step;
    return true;
  }

  // The word with all its arguments: what its lists are called.
  const std::string& name() const { return name_; }
  Summary summary() const { return summary_; }
  const std::optional<Index>& index() const { return index_; }  // absent: it looks at keys
  int64_t unit_tokens() const { return unit_tokens_; }  // divides 64, or is a multiple of it
  int64_t picks() const { return picks_; }      // units that a query sees, its own one included
  virtual bool causal() const { return true; }  // no query sees what comes after it
  // Keys that are scored together; divides 64, or is a multiple of it.
  virtual int64_t scored_tokens() const { return unit_tokens_; }

  // The unit of a query, or of the context's last key where that comes before.
  int64_t OwnUnit(int64_t q, int64_t kv_tokens) const {
    return std::min(q, kv_tokens - 1) / unit_tokens_;
  }
  // Units before it are candidates, of which the best picks_of_candidates() are seen.
  int64_t CandidatesEnd(int64_t q, int64_t kv_tokens) const {
    return OwnUnit(q, kv_tokens) + (sees_own() ? 0 : 1);
  }
  int64_t picks_of_candidates() const { return picks_ - (sees_own() ? 1 : 0); }
  bool sees_own() const { return !index_.has_value() || index_->own_unit; }
  // Whether not all units up to the query's own are seen.
  bool Chooses(int64_t q, int64_t kv_tokens) const { return OwnUnit(q, kv_tokens) >= picks_; }

  // f32 in a summary of a head of `dim`, a multiple of 8.
  int Width(int dim) const {
    if (summary_ == Summary::kRows) return static_cast<int>(scored_tokens()) * dim;
    return summary_ == Summary::kMinMax ? 2 * dim : dim;
  }

  // A score is the dot product of a unit's summary with `to` [Width(dim)], which this makes of the
  // query's row q [dim]; in f64, rounded to f32 (select/scores.h). The row itself, unless a word
  // says otherwise.
  virtual void Expand(const float* q, int dim, double* to) const { std::copy(q, q + dim, to); }

 protected:
  Selector(std::string name, Summary summary, int64_t unit_tokens, int64_t picks)
      : name_(std::move(name)), summary_(summary), unit_tokens_(unit_tokens), picks_(picks) {}
  Selector(std::string name, const Index& index, int64_t unit_tokens, int64_t picks)
      : name_(std::move(name)), index_(index), unit_tokens_(unit_tokens), picks_(picks) {}

 private:
  const std::string name_;
  const Summary summary_ = Summary::kMean;
  const std::optional<Index> index_ = {};
  const int64_t unit_tokens_;
  const int64_t picks_;
};

}  // namespace annulus
