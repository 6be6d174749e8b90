// Steps: batches of decode steps to and from their messages (annulus.proto). As in codec.h, reading
// refuses what has no meaning: on the server with INVALID_ARGUMENT naming the field, on the client
// with INTERNAL, since there it is the server that is wrong. Pure functions and values of one
// thread.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "annulus/types.h"
#include "runtime/limits.h"
#include "runtime/protocol/public/convert.h"
#include "runtime/service/calls.h"

namespace annulus {
namespace v1 {
class InlineTensor;
class StepBatch;
class StepsReply;
}  // namespace v1

// Client: one batch that fits a message, and which of the requests it holds.
struct StepCut {
  size_t first = 0;
  size_t count = 0;
};

// Client: what a well-formed request takes of a message.
int64_t StepBytes(const StepRequest& request);

// Client: cuts requests, each of at most kStepBytesMax, in their order into as few batches as the
// bounds of messages and of batches allow.
std::vector<StepCut> CutSteps(absl::Span<const StepRequest> requests);

// Client: writes well-formed requests into a batch.
void ToProto(absl::Span<const StepRequest> requests, v1::StepBatch* message);

// Server: the requests of a batch, or why one is none; the others stand. Their tensors borrow from
// the message.
std::vector<absl::StatusOr<StepRequest>> FromProto(const v1::StepBatch& message);

// Server: hands the answers of a batch to `send`, message by message; false once `send` says so.
bool SendAnswers(absl::Span<const absl::StatusOr<StepResult>> results,
                 const std::function<bool(const v1::StepsReply&)>& send);

// Client: puts the answers of one batch together.
class StepAnswersReader {
 public:
  explicit StepAnswersReader(absl::Span<const StepRequest> requests);

  absl::Status Add(const v1::StepsReply& message);
  bool complete() const { return missing_ == 0; }
  // Once complete: by request.
  std::vector<absl::StatusOr<StepResult>> Take() { return std::move(results_); }

 private:
  struct Rows {
    int64_t tokens = 0;
    int64_t heads = 0;
  };
  std::vector<Rows> q_;  // of the requests
  std::vector<bool> come_;
  size_t missing_ = 0;
  std::vector<absl::StatusOr<StepResult>> results_;
};

}  // namespace annulus
