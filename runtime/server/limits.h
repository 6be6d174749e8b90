// What a server of the public protocol holds at most. Each bound is named in the error of the call
// that meets it. Those that callers share leave one peer (peer.h) at most half. Plain values.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/histogram.h"
#include "runtime/protocol/public/tensor_stream.h"
#include "runtime/server/acceptor.h"
#include "runtime/server/admission.h"
#include "runtime/server/places.h"
#include "runtime/server/refusals.h"
#include "runtime/server/stall_watch.h"
#include "runtime/server/watched_end.h"

namespace annulus {

// The most calls that any of these may allow.
inline constexpr int kCallsMax = 10'000;

struct RpcLimits {
  StreamLimits stream = {};
  int in_flight_max = 256;                      // calls with tensors that work
  int transfers_max = 256;                      // calls that bring or fetch tensors, or wait to
  int step_streams_max = 512;                   // open at once, idle or not
  int short_calls_max = 64;                     // all others
  int64_t buffer_bytes_max = int64_t{2} << 30;  // of calls' tensors, all together
  int64_t transport_bytes_max = int64_t{256} << 20;  // of gRPC's own buffers, all connections
  int64_t chunk_bytes = 1 << 20;                     // of a streamed reply's messages, < 4 MiB
  ClientLimits client = {};
  ConnectionLimits connections = {};
};

// INVALID_ARGUMENT names a limit that makes no sense.
absl::Status CheckLimits(const RpcLimits& limits);
absl::Status CheckLimits(const ClientLimits& limits);

// How much of them is taken now, and what they have come to; for metrics.
struct RpcLoad {
  int64_t transfers = 0;
  int64_t step_streams = 0;
  int64_t calls_waiting = 0;  // for a slot
  std::map<std::string, int64_t> calls_waiting_by_tenant;
  Histogram::Reading queue_wait;                                     // of all calls for their slots
  std::vector<std::pair<absl::string_view, uint64_t>> refused = {};  // by reason (refusals.h)
};

// The limits at work in one server.
struct RpcBounds {
  explicit RpcBounds(const RpcLimits& limits)
      : admission({limits.in_flight_max, limits.short_calls_max, limits.buffer_bytes_max}),
        transfers("transfers_max", limits.transfers_max),
        step_streams("step_streams_max", limits.step_streams_max),
        stalls(limits.client),
        ends(&stalls) {}

  Admission admission;
  Places transfers;
  Places step_streams;
  StallWatch stalls;
  CallEnds ends;
  Refusals refusals;

  RpcLoad Load() const;
};

}  // namespace annulus
