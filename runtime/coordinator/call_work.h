// The tensor work of a call, done by its caller's thread between the core's decisions: what each
// rank gets, and what becomes of its answer. Each object serves one call; not thread-safe.
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

// What one rank is sent.
struct RankMessage {
  int rank = 0;
  Message message;
};

// What one rank answered.
struct RankAnswer {
  int rank = 0;
  wire::Body done;  // a Done, or the StepDone of a Step
  Buffer payload;
};

// What a call sends. Ranks that are left out take no part.
struct PreparedWork {
  std::vector<RankMessage> messages;
  std::vector<std::pair<size_t, absl::Status>> refused;  // as event::Prepared
};

// Ends what a call's thread does for itself, once the caller does not wait for it any more. Both
// must outlive it.
Stop StopOf(const CallContext& call, const Clock& clock);

class CallWork {
 public:
  virtual ~CallWork() = default;

  // The call was admitted: checks the request against the context and cuts it. An error ends the
  // call.
  virtual absl::StatusOr<PreparedWork> Prepare(const action::Admit& admit);

  // Called once for each rank that Prepare named. An error ends the call.
  virtual absl::Status OnAnswer(RankAnswer answer) = 0;
};

}  // namespace annulus
