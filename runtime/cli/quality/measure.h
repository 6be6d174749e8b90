// A pattern, or a context that Compress makes smaller, beside dense attention over one task.
// Thread-compatible: uses the backend's threads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/backend.h"
#include "runtime/cli/quality/compression.h"
#include "runtime/cli/quality/tasks.h"

namespace annulus {

struct AttentionInputs {
  TensorView q;  // the context's last queries
  TensorView k;
  TensorView v;
};

// What is compared, how.
struct Comparison {
  std::string pattern;  // of no meaning where it compresses
  std::optional<Compression> compression = {};
  std::string dense = {};  // the pattern that it is held against
  int repeat = 1;          // the fastest run counts
};

struct MassFigures {
  double density = 0;  // its (query, key) pairs, of dense attention's
  double mass = 0;     // of dense attention's weights, those on keys it sees; mean over rows
  double error = 0;    // ‖out − dense out‖ / ‖dense out‖ over all rows (Frobenius)
  // Dense attention's time / its time, selection and what it makes of K included. Absent where it
  // compresses: its prompt is attended densely.
  std::optional<double> speed = {};
  // The same of the last query alone: a decode step. Absent where the pattern is for prompts.
  std::optional<double> decode_bytes =
      {};  // KV of the 64-token pages it reads, of dense attention's
  std::optional<double> decode_speed = {};  // where it compresses, of a step on what was kept
  // Where it compresses: the keys that each KV head keeps of the prompt, and how many dense steps
  // take the time that Compress takes, once.
  std::optional<int64_t> kept = {};
  std::optional<double> compress_steps = {};
};

struct RecallFigures {
  int64_t asked = 0;
  int64_t seen = 0;  // by some head: the pattern shows it the key that has the word
  int64_t found =
      0;  // … and of all words the right one is nearest to the sum of the heads' answers
  int64_t stray = 0;        // found, though no head sees it: by chance
  std::string places = {};  // of each question in order: + found, o seen but not found, . not seen
};

// Queries of the mass task that are attended after a prompt was compressed: half of those there
// are, at most so many.
inline constexpr int64_t kStepsAfterCompress = 64;

// Errors as of `annulus attend`: INVALID_ARGUMENT names the pattern, a dense one that shows a query
// no key, and one that shows what the dense one does not.
//
// Where it compresses, the context up to its last kStepsAfterCompress tokens is the prompt, whose
// queries vote, as many as there are; the rest are steps: their keys and values are appended to
// what was kept, and their queries attend to that.
absl::StatusOr<MassFigures> MeasureMass(const Comparison& comparison, const AttentionInputs& inputs,
                                        Backend& backend);
// Where it compresses, those who ask vote first. Absent where the pattern chooses for prompts
// alone, and fewer ask than it needs.
absl::StatusOr<std::optional<RecallFigures>> MeasureRecall(const Comparison& comparison,
                                                           const RecallTask& task, uint64_t seed,
                                                           Backend& backend);

}  // namespace annulus
