// A batch of items on one rank: what a worker asks of the engine. Items for which the rank waits
// for no other one are solved by the backend together, straight into the answer; the others are run
// step by step, one after the other. Thread-compatible.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "annulus/buffer.h"
#include "attention/backend.h"
#include "comm/exchange.h"
#include "runtime/engine/engine.h"

namespace annulus {

using DirectParts = absl::InlinedVector<AttendArgs, 1>;

struct BatchItem {
  // An item that has failed before is passed over. Afterwards: how it ended.
  absl::Status status;
  // What its queries ask of the backend, and nobody else; without `into`, but for its v_head_dim.
  DirectParts parts;
  // Else what it answers already.
  Buffer answer;
  // Else this rank's part of a plan. Both must be there or neither.
  std::unique_ptr<RankTask> ranked;
  std::unique_ptr<Exchange> exchange;
  // Whether a row without an answer fails the item here, before partials are merged, and what the
  // error calls it by.
  bool refuses_overflow = false;
  int layer = 0;
  // Told afterwards: payload, the caller's included.
  int64_t bytes_sent = 0;
  int64_t bytes_received = 0;
};

// What `rank` of a Home::kCaller pass-q asks of the backend, if all that it gets comes from the
// caller and goes back there as it is computed: its queries are `queries` (PackQueries). Else none.
// Its partials, one after the other, are what MergeAnswer takes. The plan must outlive the parts.
DirectParts DirectPartsOf(const Plan& plan, int rank, const std::byte* queries);

// The partials of the items that went well, in their order. If the backend fails the batch, each
// item is solved for itself, so that only the one to blame fails.
Buffer RunBatch(absl::Span<BatchItem> items, Backend& backend);

}  // namespace annulus
