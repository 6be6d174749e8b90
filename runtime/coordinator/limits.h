// What a coordinator holds at most; each bound is named in the error it causes: RESOURCE_EXHAUSTED,
// or INVALID_ARGUMENT for a single request that is too large. One owner has at most half of
// contexts and their layers, one peer (runtime/identity/peer_name.h) of calls and their bytes.
#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "runtime/limits.h"

namespace annulus {

// Contexts that one List answers with.
inline constexpr int kListMax = 1000;
inline constexpr size_t kListPatternsBytesMax = 8 << 20;  // of the contexts of one list

struct CoordinatorLimits {
  int64_t contexts_max = 4096;
  int64_t layers_max = 1 << 20;                    // of all contexts together
  int64_t in_flight_max = 256;                     // calls at once
  int64_t in_flight_bytes_max = int64_t{4} << 30;  // of all calls: tensors, candidates, lists
  int64_t request_bytes_max = int64_t{1} << 30;    // tensors of one call, its answer included
  // Lists that callers name by handles (kept_lists.h), and as much at each worker.
  int64_t list_cache_bytes = int64_t{256} << 20;
  // When KV is full, contexts that are marked evictable go.
  bool evict = false;
};

// How long a client may take for one upload (a direct append) before it is given up: its layer
// takes no other append meanwhile.
inline constexpr absl::Duration kUploadTimeMax = absl::Seconds(30);

}  // namespace annulus
