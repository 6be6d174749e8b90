// A pattern beside dense attention over one task. Thread-compatible: uses the backend's threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/backend.h"
#include "runtime/cli/quality/tasks.h"

namespace annulus {

struct AttentionInputs {
  TensorView q;  // the context's last queries
  TensorView k;
  TensorView v;
};

// What is compared, how.
struct Comparison {
  std::string pattern;
  std::string dense;  // the pattern that it is held against
  int repeat = 1;     // the fastest run counts
};

struct MassFigures {
  double density = 0;  // its (query, key) pairs, of dense attention's
  double mass = 0;     // of dense attention's weights, those on keys it sees; mean over rows
  double error = 0;    // ‖out − dense out‖ / ‖dense out‖ over all rows (Frobenius)
  double speed = 0;  // dense attention's time / its time, selection and what it makes of K included
  // The same of the last query alone: a decode step.
  double decode_bytes = 0;  // KV bytes of the 64-token pages that it reads, of dense attention's
  double decode_speed = 0;
};

struct RecallFigures {
  int64_t asked = 0;
  int64_t seen = 0;  // by some head: the pattern shows it the key that has the word
  int64_t found =
      0;  // … and of all words the right one is nearest to the sum of the heads' answers
  int64_t stray = 0;        // found, though no head sees it: by chance
  std::string places = {};  // of each question in order: + found, o seen but not found, . not seen
};

// Errors as of `annulus attend`: INVALID_ARGUMENT names the pattern.
absl::StatusOr<MassFigures> MeasureMass(const Comparison& comparison, const AttentionInputs& inputs,
                                        Backend& backend);
absl::StatusOr<RecallFigures> MeasureRecall(const std::string& pattern, const RecallTask& task,
                                            uint64_t seed, Backend& backend);

}  // namespace annulus
