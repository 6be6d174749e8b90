// Rendezvous: how the members of a group find each other before any transport between them exists:
// UCX addresses and NCCL ids are published under a key and read by the others. Implementations:
// in-process (local/), and, in the service, what the coordinator hands out; MPI follows.
// Thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace annulus {

class Rendezvous {
 public:
  virtual ~Rendezvous() = default;

  // Publishes `value` under `key`. ALREADY_EXISTS if the key has another value.
  virtual absl::Status Put(absl::string_view key, absl::string_view value) = 0;

  // The value under `key`, waiting for it. DEADLINE_EXCEEDED names the key.
  virtual absl::StatusOr<std::string> Get(absl::string_view key, absl::Time deadline) = 0;
};

}  // namespace annulus
