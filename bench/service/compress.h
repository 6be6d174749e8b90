// Decode over compressed contexts beside the whole one, in one service and one run: what a step
// takes, what the context holds, and how much of the attention's mass it has kept.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "annulus/types.h"

namespace annulus {

// bf16, one layer, over one worker within this process that has all cores.
struct CompressShape {
  int heads = 32;
  int kv_heads = 8;
  int dim = 128;
  int64_t tokens = 16 << 10;
  int steps = 100;  // of each context, in turn; the medians count
};

struct Compression {
  std::string name;
  KeepRule rule;
  int64_t queries = 0;  // the last ones, which vote
};

struct CompressRow {
  std::string name;
  int64_t kept = 0;  // tokens of each KV head
  double compress_s = 0;
  double step_s = 0;   // appends a token and attends
  double whole_s = 0;  // the same of the whole context
  int64_t kv_bytes = 0;
  int64_t whole_bytes = 0;
  double mass = 0;  // Σ exp(lse) over what the whole context has, the mean of heads and steps
};

// The first row is the whole context itself. Keys and queries as drifting.h makes them; queries of
// steps are near keys that those which voted were near, too.
absl::StatusOr<std::vector<CompressRow>> MeasureCompress(const CompressShape& shape,
                                                         const std::vector<Compression>& ways);

// SnapKV and H2O by their papers' budgets, on stdout: a table, or a JSON line each. `csv`: a file;
// empty: none.
absl::Status ShowCompress(int64_t tokens, bool json, const std::string& csv);

}  // namespace annulus
