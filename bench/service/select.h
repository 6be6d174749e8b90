// Decode over keys chosen by data beside dense decode, in one service and one run: what a step
// takes, selection included, and how much of the attention's mass what it saw has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace annulus {

// bf16 over one worker within this process that has all cores.
struct SelectShape {
  int heads = 32;
  int kv_heads = 8;
  int dim = 128;
  int64_t tokens = int64_t{1} << 20;
  int steps = 5;  // of each pattern, in turn; the medians count
};

struct SelectRow {
  std::string pattern;
  double step_s = 0;
  double select_s = 0;  // of it the Select that an index takes; 0 for words that have none
  // What that would take at the peaks of the same run over what it takes: the greater of its
  // products, by what looks at bf16 tokens (select/screen.h: AVX512-BF16's dot product, or f32),
  // and its index keys, read once.
  double index_share = 0;
  double dense_s = 0;
  double mass = 0;  // Σ exp(lse) over what dense has, the mean of all heads and steps
  int64_t kv_bytes = 0;
};

// Of each pattern, a word by itself; the first row is dense itself. Keys are random with a drift
// that is common to neighbours, queries are near some of them: without either all pages are alike
// to a query. Index rows are the mean of the KV heads' keys, of one track; index queries are the
// query heads' own, dsa's 64 with weights of 1, msa's of one head in each group.
absl::StatusOr<std::vector<SelectRow>> MeasureSelect(const SelectShape& shape,
                                                     const std::vector<std::string>& patterns);

// The patterns that have a bar, on stdout: a table, or a JSON line each. `csv`: a file; empty:
// none.
absl::Status ShowSelect(int64_t tokens, bool json, const std::string& csv);

}  // namespace annulus
