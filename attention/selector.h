// Selector: a word of the pattern language whose keys are chosen by data, from what the context
// holds and each query. It cuts the context into units of tokens. A query sees some whole units
// before its own one, those of the highest scores, and of its own one the keys up to itself.
// A score depends on the query's row and on the unit alone, never on tile, thread or worker, and
// Before() leaves no ties: so the same keys are chosen at every number of workers.
// Implementations are in select/, a file each. Immutable values, shared between threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

namespace annulus {

// What a unit is scored by, of its K rows alone; f32.
enum class Summary {
  kMean,    // [head_dim]: the rows' mean
  kMinMax,  // [2, head_dim]: the least of each dim, then the largest; exact
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

class Selector {
 public:
  virtual ~Selector() = default;

  // The word with all its arguments: what its lists are called.
  const std::string& name() const { return name_; }
  Summary summary() const { return summary_; }
  int64_t unit_tokens() const { return unit_tokens_; }  // divides 64, or is a multiple of it
  int64_t picks() const { return picks_; }  // units that a query sees, its own one included

  // The unit of a query, or of the context's last key where that comes before.
  int64_t OwnUnit(int64_t q, int64_t kv_tokens) const {
    return std::min(q, kv_tokens - 1) / unit_tokens_;
  }
  // Whether not all units up to the query's own are seen.
  bool Chooses(int64_t q, int64_t kv_tokens) const { return OwnUnit(q, kv_tokens) >= picks_; }

  // f32 in a summary of a head of `dim`, a multiple of 8.
  int Width(int dim) const { return summary_ == Summary::kMinMax ? 2 * dim : dim; }

  // A score is the dot product of a unit's summary with `to` [Width(dim)], which this makes of the
  // query's row q [dim]; in f64, rounded to f32 (select/scores.h).
  virtual void Expand(const float* q, int dim, double* to) const = 0;

 protected:
  Selector(std::string name, Summary summary, int64_t unit_tokens, int64_t picks)
      : name_(std::move(name)), summary_(summary), unit_tokens_(unit_tokens), picks_(picks) {}

 private:
  const std::string name_;
  const Summary summary_;
  const int64_t unit_tokens_;
  const int64_t picks_;
};

}  // namespace annulus
