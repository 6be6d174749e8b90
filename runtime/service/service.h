// Service: what a coordinator does for its callers, free of any rpc. The gRPC server turns messages
// into these calls; the coordinator process implements them; tests call them directly.
// Thread-safe; calls block. Errors as in client.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "base/trace_context.h"
#include "runtime/identity/caller.h"
#include "runtime/service/calls.h"

namespace annulus {

// How a caller's patience reaches the work: past the deadline, or once cancelled() says so, a call
// ends soon with DEADLINE_EXCEEDED or CANCELLED and its work on the workers stops.
struct CallContext {
  absl::Time deadline = absl::InfiniteFuture();
  std::function<bool()> cancelled;  // may be empty
  Caller caller = {};               // who calls, and may: the call's door has seen to that
  TraceContext trace = {};          // the span that the call is
};

// What a call takes of what callers share, as far as its header says.
struct CallSize {
  int64_t answer_bytes = 0;  // of the tensors of its answer, at most
  int64_t work_pairs = 0;    // that its plan computes; 0: not known before it is planned
  // While anybody keeps it the call uses its context, whose lease does not end then. To be let go
  // of before the service; may be null.
  std::shared_ptr<const void> use = nullptr;
};

class Service : public Answerer<CallContext> {
 public:
  // Looks, before anything is kept or read for it, whether a call can be carried out as far as its
  // header says: its tensors have shapes and no data yet. Errors as of the call.
  virtual absl::StatusOr<CallSize> Check(const AppendRequest& header, const CallContext& call) {
    return CallSize();
  }
  virtual absl::StatusOr<CallSize> Check(const AttendRequest& header, const CallContext& call) {
    return CallSize();
  }
};

}  // namespace annulus
