// Options of who may come in, and of what a client proves itself with. Thread-safe functions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/cli/options/options.h"
#include "runtime/identity/authenticator.h"
#include "runtime/protocol/public/channel.h"
#include "runtime/server/door.h"
#include "runtime/telemetry/metrics.h"

namespace annulus {

struct ServerSecurityFlags {
  std::string auth;  // file; empty: nobody is asked who they are
  int reload_s = 5;
};
void AddServerSecurity(Options* options, ServerSecurityFlags* flags);

void AddClientSecurity(Options* options, ClientSecurity* security);

// nullptr without a file. INVALID_ARGUMENT names --auth and the field of the file.
absl::StatusOr<std::unique_ptr<Authenticator>> OpenAuthenticator(const ServerSecurityFlags& flags);

// annulus_calls_refused_total{reason} and annulus_auth_reloads_total{result}. `authenticator` may
// be null.
void AddSecurityMetrics(const Door& door, const Authenticator* authenticator,
                        std::vector<Metric>* metrics);

}  // namespace annulus
