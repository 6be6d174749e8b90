// Refusals: how many calls were refused for want of room, by the bound that they met. Errors name
// it, wherever they come from: this server, the coordinator behind it, or a worker. Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace annulus {

// All reasons that there may be. "quota": any of the caller's tenant's; "other": a bound that is
// none of these.
inline constexpr std::array<absl::string_view, 14> kRefusalReasons = {"in_flight_max",
                                                                      "in_flight_bytes_max",
                                                                      "short_calls_max",
                                                                      "buffer_bytes_max",
                                                                      "transfers_max",
                                                                      "puts_max",
                                                                      "step_streams_max",
                                                                      "contexts_max",
                                                                      "layers_max",
                                                                      "kv_bytes_limit",
                                                                      "quota",
                                                                      "table_bytes_max",
                                                                      "upload_bytes_max",
                                                                      "other"};

// Of a RESOURCE_EXHAUSTED error: one of kRefusalReasons.
absl::string_view RefusalReason(const absl::Status& refused);

class Refusals {
 public:
  // Counts how a call ended, if it was refused. Returns it.
  absl::Status Note(absl::Status status);

  std::vector<std::pair<absl::string_view, uint64_t>> Read() const;  // every reason's

 private:
  std::array<std::atomic<uint64_t>, kRefusalReasons.size()> counts_ = {};
};

}  // namespace annulus
