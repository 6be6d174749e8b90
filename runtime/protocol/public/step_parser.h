// Server: an encoded StepBatch, before and while it is parsed. A message of 4 MiB can hold a
// million empty steps, which would take a gigabyte once parsed: they are counted first. Each step
// is parsed for itself, so that one that is none does not take the others along. Pure functions.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace google::protobuf::io {
class ZeroCopyInputStream;
}  // namespace google::protobuf::io

namespace annulus {
namespace v1 {
class StepBatch;
}  // namespace v1

// Of a step in memory, beside its tensors' bytes: its message, request, result and answer. No less
// than they take.
inline constexpr size_t kParsedStepBytes = 4096;

// Texts and messages in a step that kParsedStepBytes is enough for, and how many more there may be
// in all steps of a batch, each of kParsedFieldBytes: lists above all.
inline constexpr int64_t kStepFields = 16;
inline constexpr int64_t kMoreStepFieldsMax = 65536;

struct StepCount {
  int64_t steps = 0;
  int64_t parsed_bytes = 0;  // that they take once parsed, at most, beside their tensors' bytes
};

// How many steps there are. INVALID_ARGUMENT if the bytes are no StepBatch, as far as can be said
// without a look into its steps, or if there are more than kStepsMax of them or more texts and
// messages in them than these bounds allow; a step that is none counts by its bytes.
absl::StatusOr<StepCount> CountSteps(google::protobuf::io::ZeroCopyInputStream* bytes);

// Parses what CountSteps has counted. What is wrong with steps that are none, by their place in the
// batch, where they are left out as empty ones.
std::vector<std::pair<size_t, absl::Status>> ParseSteps(
    google::protobuf::io::ZeroCopyInputStream* bytes, v1::StepBatch* batch);

}  // namespace annulus
