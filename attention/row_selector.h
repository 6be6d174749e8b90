// RowSelector: a selector that picks from all scores of a row, as thresholds and sums over heads
// need them. Its lists have a row for each `row_tokens` queries, at multiples of that; of these,
// `group_tokens` queries are scored together, by each unit of scored_tokens keys. All scores of a
// row meet at one place, and Pick, a pure function of them, names what the row sees: so the same
// keys are chosen at every number of workers. Immutable values, shared between threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "attention/key_list.h"
#include "attention/ranges.h"
#include "attention/selector.h"

namespace annulus {

// All scores of one row of one list.
struct RowScores {
  absl::Span<const float> scores;  // [heads, groups, units]
  int64_t heads = 1;               // that share the list
  int64_t groups = 1;              // of queries, those that the call brings
  int64_t units = 0;               // from the context's begin on
  TokenRange queries;              // of the call, in the row
  int64_t kv_tokens = 0;
  double scale = 0;  // of a product of a query and a key; for an index 1/√dim

  const float* Of(int64_t head, int64_t group) const {
    return scores.data() + (head * groups + group) * units;
  }
};

class RowSelector : public Selector {
 public:
  enum class Lists { kQueryHeads, kKvHeads, kOne };  // who has a list of its own

  struct Form {
    Lists lists = Lists::kQueryHeads;
    int64_t row_tokens = 1;     // 1, or the selector's unit
    int64_t group_tokens = 1;   // divides row_tokens
    int64_t scored_tokens = 0;  // divides the selector's unit; of an index rows of its track
    bool causal = true;
  };

  const RowSelector* by_row() const override { return this; }
  const Form& form() const { return form_; }
  int64_t scored_tokens() const override { return form_.scored_tokens; }
  bool causal() const override { return form_.causal; }

  // Units from which on no query up to `last` is scored.
  virtual int64_t UnitsEnd(int64_t last, int64_t kv_tokens) const = 0;

  // As Expand, of a group's queries q [n, dim] that the call brings, behind `missing` of the group
  // that it does not. What it makes are f32 values.
  virtual void ExpandGroup(absl::Span<const float> q, int64_t missing, int dim, double* to) const {
    (void)missing;
    Expand(q.data(), dim, to);
  }

  // Appends the units (unit_tokens) that the row sees, ascending. All sums in one order.
  virtual void Pick(const RowScores& row, std::vector<int32_t>* keys) const = 0;

  // INVALID_ARGUMENT for a call that the word has no meaning for.
  virtual absl::Status CheckCall(TokenRange queries, int64_t kv_tokens) const {
    (void)queries, (void)kv_tokens;
    return absl::OkStatus();
  }
  bool ChoosesFor(TokenRange queries, int64_t kv_tokens, bool step) const final {
    (void)step;
    return CheckCall(queries, kv_tokens).ok();
  }

 protected:
  // `picks`: units that a row sees at most; kListKeysMax where there is no such bound.
  RowSelector(std::string name, Summary summary, int64_t unit_tokens, int64_t picks,
              const Form& form)
      : Selector(std::move(name), summary, unit_tokens, picks), form_(form) {}
  RowSelector(std::string name, const Index& index, int64_t unit_tokens, int64_t picks,
              const Form& form)
      : Selector(std::move(name), index, unit_tokens, picks), form_(form) {}

 private:
  const Form form_;
};

}  // namespace annulus
