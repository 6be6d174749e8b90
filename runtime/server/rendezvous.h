// A coordinator's rendezvous, reached over gRPC: how a worker learns where the coordinator's fabric
// is before it can speak over it.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "comm/rendezvous.h"
#include "runtime/protocol/public/client_identity.h"

namespace annulus {

// `endpoint` is "host:port" and need not answer yet: calls wait for it (Put for at most 10 s, then
// DEADLINE_EXCEEDED naming the endpoint). INVALID_ARGUMENT names a file of `security`. Thread-safe.
absl::StatusOr<std::unique_ptr<Rendezvous>> MakeRpcRendezvous(const std::string& endpoint,
                                                              const ClientSecurity& security = {});

}  // namespace annulus
