// The command line's way to a service. Thread-safe function.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "annulus/client.h"
#include "runtime/protocol/public/client_identity.h"

namespace annulus {

// UNAVAILABLE where the endpoint's host is unknown or every address of it refuses the connection.
// Looks for a second at most.
absl::Status ProbeService(const std::string& endpoint);

// UNAVAILABLE names the endpoint: at once where its host is unknown or every address of it refuses
// the connection, and where nothing answers within some seconds. UNAUTHENTICATED where the service
// does not know the token.
absl::StatusOr<std::unique_ptr<Client>> ConnectTo(const std::string& endpoint,
                                                  const ClientSecurity& security,
                                                  Upload upload = Upload::kDirect);

}  // namespace annulus
