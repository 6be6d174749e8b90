// Service: what a coordinator does for its callers, free of any rpc. The gRPC server turns messages
// into these calls; the coordinator process implements them; tests call them directly.
// Thread-safe; calls block. Errors as in client.h.
#pragma once

#include <functional>

#include "absl/time/time.h"
#include "runtime/identity/caller.h"
#include "runtime/service/calls.h"

namespace annulus {

// How a caller's patience reaches the work: past the deadline, or once cancelled() says so, a call
// ends soon with DEADLINE_EXCEEDED or CANCELLED and its work on the workers stops.
struct CallContext {
  absl::Time deadline = absl::InfiniteFuture();
  std::function<bool()> cancelled;  // may be empty
  Caller caller = {};               // who calls, and may: the call's door has seen to that
};

using Service = Answerer<CallContext>;

}  // namespace annulus
