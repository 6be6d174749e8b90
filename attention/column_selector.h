// ColumnSelector: a word of the pattern language that chooses keys for all queries of a prompt by
// what its last ones see: how much of their softmax's weight falls on each key (columns of the
// matrix of weights) and on each distance (its diagonals). Steps of decode have no such queries and
// bring the list, or another pattern. Immutable values, shared between threads.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "annulus/key_list.h"
#include "attention/selector.h"

namespace annulus {

// Of one query head, summed over the last queries; each query's weights are those of its softmax
// over all keys up to itself.
struct ColumnWeights {
  absl::Span<const float> columns;       // [kv_tokens], by key
  absl::Span<const uint64_t> diagonals;  // [kv_tokens], by distance; of ColumnQueries's unit
};

class ColumnSelector : public Selector {
 public:
  const ColumnSelector* by_column() const final { return this; }

  // How many queries are looked at, of a call that has so many: its last ones.
  int64_t last_queries() const { return last_queries_; }

  // The keys and the distances that the queries of a head see, ascending: rows of a kVerticalSlash
  // list of block_tokens().
  virtual void Pick(const ColumnWeights& weights, std::vector<int32_t>* verticals,
                    std::vector<int32_t>* slashes) const = 0;
  int64_t block_tokens() const { return unit_tokens(); }

 protected:
  ColumnSelector(std::string name, int64_t last_queries, int64_t block_tokens)
      : Selector(std::move(name), Summary::kMean, block_tokens, /*picks=*/1),
        last_queries_(last_queries) {}

 private:
  const int64_t last_queries_;
};

}  // namespace annulus
