// Whether an answer is right: rows drawn by chance against the float64 oracle, whose inputs are
// made again. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/partial.h"
#include "attention/reference/reference.h"
#include "base/memory_kind.h"
#include "bench/plans/inputs.h"
#include "sharding/plan.h"

namespace annulus {

// The largest errors (RowError) of a right answer. Kernels for bf16 queries round the weights of
// the softmax to bf16, but sum them for lse before. A GPU's kernels round those of f16 too, and add
// the weights of a row one by one in f32: over 1M keys lse then errs by some 1e-5.
struct Tolerance {
  double out = 1e-5;  // f32 and f16: the kernels compute in f32
  double lse = 1e-5;
};
Tolerance ToleranceOf(DType dtype, MemoryKind computed_in);

// Attention of one query by the oracle, on keys and values made a few blocks at a time.
absl::StatusOr<ReferenceAnswer> OracleRow(const Inputs& inputs, const Problem& problem, float scale,
                                          int64_t position, int head);

struct CheckResult {
  int64_t rows = 0;        // (query, head) pairs compared
  double max_rel_err = 0;  // of out
  std::string wrong;       // the first row beyond the tolerance: which, and by how much; or empty
};

// Draws rows from `answer`, the finalised rows at `ranges` with all heads, none of them twice: one
// at least if there is one, then until all of them, `rows_max` of them, or so many keys are looked
// at that the oracle has taken some seconds. A row that sees no key must be out 0 and lse −∞.
// `computed_in`: the memory of the backend.
absl::StatusOr<CheckResult> CheckRows(const Inputs& inputs, const Problem& problem, float scale,
                                      const std::vector<TokenRange>& ranges, PartialView answer,
                                      uint64_t seed, int rows_max, MemoryKind computed_in);

}  // namespace annulus
