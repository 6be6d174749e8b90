// Options that several commands share, so that they read and refuse alike. Thread-safe functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/backend.h"
#include "runtime/cli/options/options.h"
#include "sharding/partition.h"
#include "sharding/plan.h"

namespace annulus {

// "host:port", "[::1]:port"; the port 0 to 65535.
absl::StatusOr<std::string> ParseEndpoint(absl::string_view text);

// "auto" and the names of all plans, with `between` between them.
std::string PlanWords(absl::string_view between);
// One of them; nullopt: auto, the cheapest.
absl::StatusOr<std::optional<PlanKind>> ParsePlan(absl::string_view text);

void AddPlan(Options* options, std::optional<PlanKind>* plan);
void AddPlacement(Options* options, PartitionSpec* placement);

// What a worker computes with, and where it keeps KV.
struct ComputeFlags {
  std::string backend = "auto";
  int threads = 0;
  std::string kv_memory = "auto";
  int64_t kv_bytes_limit = 0;  // 0: a share of the memory

  bool kv_in_host_memory() const { return kv_memory == "host"; }
};
void AddComputeOptions(Options* options, ComputeFlags* flags);

// The limit of one of `workers` on this machine, unless the flags say another: half of the host's
// memory, or three quarters of a GPU's, by how many share it.
int64_t KvBytesLimit(const ComputeFlags& flags, const BackendCapabilities& backend, int workers);

// How much freed memory a worker's process keeps (base/memory.h), so that contexts that come find
// some of what those that went had: an eighth of its KV limit, up to 1 GiB.
size_t KeptBytes(int64_t kv_bytes_limit);

}  // namespace annulus
