// Options that several commands share, so that they read and refuse alike. Thread-safe functions.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/cli/options.h"
#include "runtime/client/client.h"
#include "sharding/partition.h"
#include "sharding/plan.h"

namespace annulus {

inline constexpr int64_t kDimMax = 576;

// "host:port", "[::1]:port"; the port 0 to 65535.
absl::StatusOr<std::string> ParseEndpoint(absl::string_view text);

void AddPlan(Options* options, std::optional<PlanKind>* plan);
void AddPlacement(Options* options, PartitionSpec* placement);
// --backend, --threads and --kv-bytes-limit of a worker.
void AddWorkerOptions(Options* options, std::string* backend, int* threads,
                      int64_t* kv_bytes_limit);

// UNAVAILABLE names the endpoint where nothing answers within some seconds.
absl::StatusOr<std::unique_ptr<Client>> ConnectTo(const std::string& endpoint,
                                                  Upload upload = Upload::kDirect);

}  // namespace annulus
