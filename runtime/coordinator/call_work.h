// The tensor work of a call, done by its caller's thread between the core's decisions: what each
// rank gets, and what becomes of its answer. Each object serves one call; not thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/buffer.h"
#include "comm/messenger.h"
#include "runtime/coordinator/core.h"

namespace annulus {

// What one rank is sent, in order.
struct RankMessages {
  int rank = 0;
  std::vector<Message> messages;
};

// What one rank answered.
struct RankAnswer {
  int rank = 0;
  wire::Done done;
  Buffer payload;
  std::vector<TraceSpan> spans;
};

class CallWork {
 public:
  virtual ~CallWork() = default;

  // The call was admitted: checks the request against the context and cuts it. Ranks that are left
  // out take no part. An error ends the call.
  virtual absl::StatusOr<std::vector<RankMessages>> Prepare(CallId id, const ShardMap& map) = 0;

  // Called once for each rank that Prepare named. An error ends the call.
  virtual absl::Status OnAnswer(RankAnswer answer) = 0;
};

}  // namespace annulus
