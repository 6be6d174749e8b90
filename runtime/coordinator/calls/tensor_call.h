// The tensor work of a call, done by its caller's thread between the core's decisions: what each
// worker gets, and what becomes of its answer. Each object serves one call; not thread-safe.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "annulus/buffer.h"
#include "base/clock.h"
#include "base/stop.h"
#include "comm/messenger.h"
#include "runtime/coordinator/core/core.h"
#include "runtime/service/service.h"

namespace annulus {

// What one worker is sent: the share of it, and the message.
struct ShareMessage {
  event::Share share;
  Message message;
};

// What one worker answered.
struct ShareAnswer {
  int rank = 0;  // as in its share
  wire::WorkDone done;
  Buffer payload;
};

// What a call sends. Workers that are left out take no part.
struct PreparedCall {
  std::vector<ShareMessage> messages;
  std::vector<std::pair<size_t, absl::Status>> refused;  // as event::Prepared
  std::vector<size_t> merging = {};                      // likewise
  int64_t bytes = 0;                                     // likewise
};

// Ends what a call's thread does for itself, once the caller does not wait for it any more. Both
// must outlive it.
Stop StopOf(const CallContext& call, const Clock& clock);

// What the caller of an append that is over is told.
absl::StatusOr<AppendResult> AppendResultOf(const action::Finish& finish);

class TensorCall {
 public:
  virtual ~TensorCall() = default;

  // The call was admitted: checks the request against the context and cuts it. An error ends the
  // call.
  virtual absl::StatusOr<PreparedCall> Prepare(const action::Admit& admit);

  // Called once for each worker that Prepare named. An error ends the call.
  virtual absl::Status OnAnswer(ShareAnswer answer) = 0;
};

// A call without tensors.
class NoTensors final : public TensorCall {
 public:
  absl::Status OnAnswer(ShareAnswer) override { return absl::OkStatus(); }
};

}  // namespace annulus
